"""Sizes of the dynamic axes that engines are verified at."""

from adacache_engines.bundle.manifest import IMAGE, LatentSpace


def check_sizes(latent: LatentSpace) -> list[dict[str, int]]:
    """Return two shapes for a model: several frames that, where they may, do not fill whole patches, and an image."""
    frames, rows, columns = latent.patch
    less = 0 if latent.whole_patches else 1
    clip = {"frames": 3 * frames, "height": 4 * rows - less * (rows > 1), "width": 5 * columns - less * (columns > 1)}
    image = {"frames": frames, "height": 2 * rows, "width": 3 * columns}
    several = {"batch": 4, "samples": 2, "calls": 3, "pairs": 2, "text": 6, IMAGE: 5}
    single = {"batch": 2, "samples": 1, "calls": 1, "pairs": 1, "text": 3, IMAGE: 2}
    return [size | latent.token_axes(**size) | rest for size, rest in ((clip, several), (image, single))]


def encoder_sizes(longest: int, vocabulary: int) -> list[dict[str, int]]:
    """Return two shapes for a text encoder: a text as long as it may be, or as the vocabulary is, and a short one."""
    return [{"batch": 2, "text": min(longest, vocabulary)}, {"batch": 1, "text": 3}]


def decoder_sizes(latent: LatentSpace) -> list[dict[str, int]]:
    """Return two shapes for a VAE's decoder: several images or latent frames, and a single one of another aspect."""
    return [latent.chunk_axes(3, 5, 7, images=2), latent.chunk_axes(1, 4, 3)]


def vae_encoder_sizes(latent: LatentSpace) -> list[dict[str, int]]:
    """Return two shapes for a VAE's encoder: some frames more than fill latent frames, and a single one."""
    rule = latent.chunks
    frames = rule.frames % rule.stretch + 2 * rule.stretch
    sizes = ((latent.image_axes(5, 7, images=2), frames), (latent.image_axes(4, 3), 1))
    return [{**axes, "pixel_frames": some, "frames": rule.encoded(some)} for axes, some in sizes]
