"""Shape profiles by name: ``480p:2s`` to the ranges of a bundle's dynamic axes.

    SIZE:LENGTH[:PROMPTS]     480p:2s   480x854:51f   240p..480p..720p:2s..4s:1..4

Each part is one value, MIN..MAX, or MIN..USUAL..MAX. Plans run at every size in between, fastest at the usual one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from adacache_engines.bundle.manifest import Graph, LatentSpace, Manifest, VideoDefaults
from adacache_engines.bundle.video_sizes import DURATIONS, IMAGE, RESOLUTIONS, USUAL_ASPECT
from adacache_engines.errors import InputError, OutOfRangeError

Range = tuple[int, int, int]  # smallest, usual, largest
ShapeProfile = dict[str, Range]  # by axis

SIZES: Mapping[str, tuple[int, int]] = {name: sizes[USUAL_ASPECT] for name, sizes in RESOLUTIONS.items()}
LENGTHS: Mapping[str, int] = {IMAGE: 1, **DURATIONS}
MOST_FRAMES = 2000  # that anybody asks for
REMEMBERED = 6  # predictions that PNDM, with its Runge-Kutta start, keeps

T = TypeVar("T")


def shape_profile(manifest: Manifest, name: str) -> ShapeProfile:
    """The ranges of all dynamic axes.

    Raises:
        InputError: the name is not of the form above, or its ranges go down.
        OutOfRangeError: the model does not go that far.
    """
    points = [_point(manifest, *values) for values in parse_profile(name)]
    profile = {axis: (points[0][axis], points[1][axis], points[2][axis]) for axis in points[0]}
    # a call may evaluate one guidance branch alone
    profile["batch"] = (points[0]["samples"], *profile["batch"][1:])
    # what a generation chooses within any size
    longest = manifest.text.max_length
    pairs = max(profile["patch_frames"][2] - 1, 1)
    profile |= {"text": (1, longest, longest), "calls": (1, 1, REMEMBERED), "pairs": (1, pairs, pairs)}
    for axis, (least, usual, most) in profile.items():
        if not least <= usual <= most:
            raise InputError(f"profile {name!r} goes down: {axis} {least}, {usual}, {most}; write smaller values first")
    for end in (0, 2):
        check_profiles(manifest, {axis: size[end] for axis, size in profile.items()})
    return profile


def parse_profile(name: str) -> list[tuple[tuple[int, int], int, int]]:
    """Size (height, width) in pixels, frames and prompts of a profile's smallest, usual and largest generation.

    Raises:
        InputError: the name is not of the form above.
    """
    parts = name.split(":")
    if len(parts) not in (2, 3):
        raise InputError(f"profile {name!r} is not SIZE:LENGTH[:PROMPTS], such as 480p:2s or 240p..720p:2s..4s:1..4")
    sizes, lengths = _three(name, parts[0], _size), _three(name, parts[1], _frames)
    prompts = _three(name, parts[2] if len(parts) == 3 else "1", int)
    return list(zip(sizes, lengths, prompts, strict=True))


def fixed_profile(manifest: Manifest) -> str:
    """The name of the profile for a bundle's default video and one prompt."""
    return _exactly(manifest.video)


def video_sizes(manifest: Manifest, video: VideoDefaults) -> dict[str, int]:
    """Sizes of all dynamic axes for one prompt that is as long as the model takes.

    Raises:
        OutOfRangeError: the model makes no such video.
    """
    return {axis: usual for axis, (_, usual, _) in shape_profile(manifest, _exactly(video)).items()}


def check_profiles(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """
    Raises:
        OutOfRangeError: no profile of the bundle covers these sizes of the axes.
    """
    misfits = []
    for name, profile in manifest.profiles.items():
        if covers(profile, sizes):
            return
        wrong = [
            f"{axis} {size}, allowed {profile[axis][0]} to {profile[axis][1]}"
            for axis, size in sizes.items()
            if not covers(profile, {axis: size})
        ]
        misfits.append(f"profile {name}: " + ", ".join(wrong))
    raise OutOfRangeError(
        "no profile of this bundle fits (latent sizes): " + "; ".join(misfits) + "; choose a smaller or larger video"
    )


def possible_frames(manifest: Manifest) -> list[int]:
    """The numbers of frames that the bundle's profiles allow, ascending."""
    latent, ranges = (
        manifest.latent,
        [profile.get("frames", (1, MOST_FRAMES)) for profile in manifest.profiles.values()],
    )
    return [
        count
        for count in range(1, MOST_FRAMES + 1)
        if any(low <= latent.latent_frames(count) <= high for low, high in ranges)
    ]


def vae_ranges(latent: LatentSpace, graph: Graph, profile: ShapeProfile) -> ShapeProfile:
    """A profile's ranges of the axes that a graph of the VAE has: chunks of a video, or some of its images; and what
    makes or takes pixels also does so with tiles of any size, or none that are larger than those of the bundle.
    """
    chunks, factor = latent.chunks, latent.spatial_factor
    ranges = {**profile, "images": (1, latent.images, latent.images)}
    ranges |= {"frames": (1, chunks.latents, chunks.latents), "pixel_frames": (1, chunks.frames, chunks.frames)}
    for axis in ("height", "width"):
        least, usual, most = profile[axis]
        if graph in (*latent.decoding[-1:], *latent.encoding[:1]):
            largest = latent.tile // factor if latent.tile else most
            least, usual, most = ranges[axis] = (1, min(usual, largest), min(most, largest))
        # an encoder leaves what is no whole latent row or column
        ranges[f"pixel_{axis}"] = (least * factor, usual * factor, most * factor + factor - 1)
    return ranges


def covers(profile: Mapping[str, Sequence[int]], sizes: Mapping[str, int]) -> bool:
    """Whether sizes of axes lie within a profile's ranges."""
    return all(profile[axis][0] <= size <= profile[axis][-1] for axis, size in sizes.items() if axis in profile)


def _exactly(video: VideoDefaults) -> str:
    return f"{video.height}x{video.width}:{video.frames}f"


def _three(name: str, part: str, read: Callable[[str], T]) -> tuple[T, T, T]:
    try:
        values = [read(value) for value in part.split("..")]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"profile {name!r}: {part!r} is not known; a size is HxW in pixels or {', '.join(SIZES)}, a length frames "
            f"such as 51f or {', '.join(LENGTHS)}, prompts a number; ranges are MIN..MAX or MIN..USUAL..MAX"
        ) from error
    if len(values) > 3:
        raise InputError(f"profile {name!r}: {part!r} has more than MIN..USUAL..MAX")
    return values[0], values[len(values) // 2], values[-1]


def _size(text: str) -> tuple[int, int]:
    if text in SIZES:
        return SIZES[text]
    height, width = text.split("x")
    return int(height), int(width)


def _frames(text: str) -> int:
    return int(text[:-1]) if text.endswith("f") else LENGTHS[text]


def _point(manifest: Manifest, size: tuple[int, int], frames: int, samples: int) -> dict[str, int]:
    latent = manifest.latent
    height, width = (pixels // latent.spatial_factor for pixels in size)
    axes = {"frames": latent.latent_frames(frames), "height": height, "width": width}
    batch = samples * len(manifest.guidance.order)
    return {"samples": samples, "batch": batch, **axes, **latent.token_axes(**axes)}
