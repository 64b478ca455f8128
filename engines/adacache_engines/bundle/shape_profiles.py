"""Turn the name of a shape profile, such as ``854x480:2s``, into ranges of a bundle's dynamic axes.

    SIZE:LENGTH[:PROMPTS]     480p:2s   854x480:51f   240p..480p..720p:2s..4s:1..4

A size is WIDTHxHEIGHT in pixels or a name from the bundle; a length is a number of frames or a duration.

Each part is one value, MIN..MAX, or MIN..USUAL..MAX. Plans run at every size in between, fastest at the usual one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from adacache_engines.bundle.manifest import IMAGE, Graph, LatentSpace, Manifest, VideoDefaults
from adacache_engines.bundle.video_sizes import Size, durations_of, frames_of, named, size_of
from adacache_engines.errors import InputError, OutOfRangeError

Range = tuple[int, int, int]  # smallest, usual, largest
ShapeProfile = dict[str, Range]  # by axis

REMEMBERED = 6  # number of predictions that PNDM keeps, with Runge-Kutta steps at its beginning

T = TypeVar("T")


def shape_profile(manifest: Manifest, name: str) -> ShapeProfile:
    """Return the ranges of all dynamic axes.

    Raises:
        InputError: the name has another form than SIZE:LENGTH[:PROMPTS], or its ranges go down.
        OutOfRangeError: the ranges exceed those of the model.
    """
    points = [_point(manifest, *values) for values in parse_profile(manifest, name)]
    profile = {axis: (points[0][axis], points[1][axis], points[2][axis]) for axis in points[0]}
    # a call may evaluate one guidance branch alone
    profile["batch"] = (points[0]["samples"], *profile["batch"][1:])
    # axes that are independent of the video's size
    longest = manifest.text.max_length
    pairs = max(profile["patch_frames"][2] - 1, 1)
    profile |= {"text": (1, longest, longest), "calls": (1, 1, REMEMBERED), "pairs": (1, pairs, pairs)}
    if manifest.image is not None:
        profile[IMAGE] = (manifest.image.tokens,) * 3
    for axis, (least, usual, most) in profile.items():
        if not least <= usual <= most:
            raise InputError(f"profile {name!r} goes down: {axis} {least}, {usual}, {most}; write smaller values first")
    for end in (0, 2):
        check_profiles(manifest, {axis: size[end] for axis, size in profile.items()})
    return profile


def parse_profile(manifest: Manifest, name: str) -> list[tuple[Size, int, int]]:
    """Return size (width, height) in pixels, frames and prompts of a profile's smallest, usual and largest generation.

    Raises:
        InputError: the name is not of the form above.
        OutOfRangeError: the model makes no video of such a duration.
    """
    size, length, prompts = profile_parts(name)

    def read_size(text: str) -> Size:
        return size_of(manifest, text)

    def read_length(text: str) -> int:
        return int(text[:-1]) if text[:-1].isdecimal() and text.endswith("f") else frames_of(manifest, text)

    known = (
        f"a size is WIDTHxHEIGHT in pixels or one of {named(manifest.names)}; a length is frames such as 51f or one of "
        f"{', '.join(durations_of(manifest))}; prompts are a number; ranges are MIN..MAX or MIN..USUAL..MAX"
    )
    sizes, lengths = _three(name, size, read_size, known), _three(name, length, read_length, known)
    return list(zip(sizes, lengths, _three(name, prompts, int, known), strict=True))


def profile_parts(name: str) -> tuple[str, str, str]:
    """Return the three parts of a profile's name, each of which may be a range.

    Raises:
        InputError: the name is not of the form above.
    """
    parts = name.split(":")
    if len(parts) not in (2, 3):
        raise InputError(f"profile {name!r} is not SIZE:LENGTH[:PROMPTS], such as 480p:2s or 240p..720p:2s..4s:1..4")
    for part in parts:
        if len(part.split("..")) > 3:
            raise InputError(f"profile {name!r}: {part!r} has more than MIN..USUAL..MAX")
    return parts[0], parts[1], parts[2] if len(parts) == 3 else "1"


def fixed_profile(manifest: Manifest) -> str:
    """Return the name of the profile for a bundle's default video and one prompt."""
    return _exactly(manifest.video)


def video_sizes(manifest: Manifest, video: VideoDefaults) -> dict[str, int]:
    """Return the sizes of all dynamic axes for one prompt that is as long as the model takes.

    Raises:
        OutOfRangeError: the model makes no such video.
    """
    return {axis: usual for axis, (_, usual, _) in shape_profile(manifest, _exactly(video)).items()}


def check_profiles(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Check that a profile of the bundle covers these sizes of the axes.

    Raises:
        OutOfRangeError: no profile covers them; the message lists the wrong sizes for each profile.
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


def vae_ranges(latent: LatentSpace, graph: Graph, profile: ShapeProfile) -> ShapeProfile:
    """Return a profile's ranges of the axes that a graph of the VAE has.

    A graph works on chunks of a video, or on some of its images. A graph that makes or takes pixels also works on tiles
    of any size up to the bundle's.
    """
    makes_pixels = (*latent.first_decoding[-1:], *latent.decoding[-1:])
    takes_pixels = (*latent.first_encoding[:1], *latent.encoding[:1])
    chunks, factor = latent.chunks, latent.spatial_factor
    ranges = {**profile, "images": (1, latent.images, latent.images)}
    ranges |= {"frames": (1, chunks.latents, chunks.latents), "pixel_frames": (1, chunks.frames, chunks.frames)}
    for axis in ("height", "width"):
        least, usual, most = profile[axis]
        if graph in (*makes_pixels, *takes_pixels):
            largest = latent.tile // factor if latent.tile else most
            least, usual, most = ranges[axis] = (1, min(usual, largest), min(most, largest))
        # an encoder ignores pixels beyond the last whole latent row or column
        ranges[f"pixel_{axis}"] = (least * factor, usual * factor, most * factor + factor - 1)
        ranges |= {f"{axis}_{rows}": (least * rows, usual * rows, most * rows) for rows in latent.levels}
    return ranges


def covers(profile: Mapping[str, Sequence[int]], sizes: Mapping[str, int]) -> bool:
    """Return whether all sizes of axes lie within a profile's ranges."""
    return all(profile[axis][0] <= size <= profile[axis][-1] for axis, size in sizes.items() if axis in profile)


def _exactly(video: VideoDefaults) -> str:
    return f"{video.width}x{video.height}:{video.frames}f"


def _three(name: str, part: str, read: Callable[[str], T], known: str) -> tuple[T, T, T]:
    try:
        values = [read(value) for value in part.split("..")]
    except (ValueError, InputError) as error:
        raise InputError(f"profile {name!r}: {part!r} is not known; {known}") from error
    return values[0], values[len(values) // 2], values[-1]


def _point(manifest: Manifest, size: Size, frames: int, samples: int) -> dict[str, int]:
    latent = manifest.latent
    width, height = (pixels // latent.spatial_factor for pixels in size)
    axes = {"frames": latent.latent_frames(frames), "height": height, "width": width}
    batch = samples * len(manifest.guidance.order)
    return {"samples": samples, "batch": batch, **axes, **latent.token_axes(**axes)}
