"""Read sizes and durations of videos as users write them: ``854x480``, ``480p`` with an aspect, ``4s``.

The width comes first in all sizes and aspects. The names come from the bundle's manifest, which lists none that the
model refuses.
"""

from collections.abc import Mapping, Sequence

from adacache_engines.bundle.latent_space import LatentSpace
from adacache_engines.bundle.manifest import Manifest, VideoNames
from adacache_engines.errors import InputError, OutOfRangeError

Size = tuple[int, int]  # width and height, pixels

IMAGE = "image"  # the duration of a single frame
MOST_FRAMES = 2000  # largest number of frames that is considered
SECONDS = (1, 2, 4, 8, 16, 32)  # durations that are offered where a model names none


def pixels(text: str) -> Size:
    """Return width and height of ``WIDTHxHEIGHT``.

    Raises:
        ValueError: the text is something else.
    """
    width, separator, height = text.lower().partition("x")
    if not (separator and all(side.isascii() and side.isdecimal() and len(side) < 6 for side in (width, height))):
        raise ValueError(f"{text!r} is not WIDTHxHEIGHT")
    return int(width), int(height)


def size_of(
    manifest: Manifest,
    size: str | None = None,
    width: int | None = None,
    height: int | None = None,
    aspect: str | None = None,
) -> Size:
    """Return the width and height in pixels that a user asks for, by default the bundle's.

    Args:
        manifest: the bundle's manifest.
        size: ``WIDTHxHEIGHT``, or a name from the bundle.
        width, height: size in pixels, instead of ``size``; the one that is not given is the bundle's.
        aspect: WIDTH:HEIGHT of a named size; by default the bundle's.

    Raises:
        InputError: a size or an aspect is unknown, or two arguments say the same in different ways.
    """
    if size is None:
        if aspect is not None:
            raise InputError(f"aspect {aspect} is of a named size: give one of these, too: {named(manifest.names)}")
        usual = manifest.video
        return usual.width if width is None else width, usual.height if height is None else height
    if width is not None or height is not None:
        raise InputError(f"size {size} has a width and a height already; leave out either it or these")
    if size in manifest.names.sizes:
        return _named(manifest.names, size, aspect)
    try:
        found = pixels(size)
    except ValueError as error:
        raise InputError(
            f"size {size!r} is unknown; give WIDTHxHEIGHT in pixels, such as {manifest.video.width}x"
            f"{manifest.video.height}, or one of {named(manifest.names)}"
        ) from error
    if aspect is not None:
        raise InputError(f"size {size} has an aspect already, so {aspect} cannot be chosen; leave one of them out")
    return found


def usual_aspect(names: VideoNames, size: str) -> str:
    """Return the aspect that a named size has unless a user chooses another."""
    aspects = names.sizes[size]
    return names.aspect if names.aspect in aspects else next(iter(aspects))


def named(names: VideoNames) -> str:
    """Return the names of all sizes, for messages."""
    return ", ".join(names.sizes) or "none, since this bundle names no sizes"


def _named(names: VideoNames, size: str, aspect: str | None) -> Size:
    aspects = names.sizes[size]
    chosen = usual_aspect(names, size) if aspect is None else aspect
    if chosen not in aspects:
        raise InputError(f"aspect {chosen!r} is not one of {size}; width to height is one of {', '.join(aspects)}")
    return aspects[chosen]


def seconds(text: str) -> float:
    """Return the seconds of a text such as ``2s`` or ``2.5s``.

    Raises:
        InputError: the text is something else.
    """
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = 0
    if not text.endswith("s") or not 0 < value < float("inf"):
        raise InputError(f"duration {text!r} is not one of seconds, such as 2s, and not {IMAGE}")
    return value


def frames_of(manifest: Manifest, duration: str, fps: float | None = None) -> int:
    """Return the number of frames of a duration.

    Args:
        manifest: the bundle's manifest.
        duration: ``image``, seconds such as ``2s``, or another name from the bundle.
        fps: frames per second; None = the bundle's.

    Raises:
        InputError: the duration has another form.
        OutOfRangeError: the model makes no video of that duration; the message lists the durations that it makes.
    """
    names, rate = manifest.names, manifest.video.fps if fps is None else fps
    if duration == IMAGE:
        return 1
    if duration in names.durations:
        return names.durations[duration]
    count = round(seconds(duration) * rate)
    if names.only_named_durations:
        raise OutOfRangeError(
            f"duration {duration} is not possible with this model; choose {', '.join(durations_of(manifest))}, or give "
            "frames instead"
        )
    possible = possible_frames(manifest)
    if count not in possible:
        made = ", ".join(f"{low} to {high}" if high > low else f"{low}" for low, high in _runs(possible))
        raise OutOfRangeError(
            f"a video of {duration} has {count} frames at {rate:g} a second; this model makes {made}: "
            f"{possible[0] / rate:.3g}s to {possible[-1] / rate:.3g}s"
        )
    return count


def durations_of(manifest: Manifest) -> dict[str, int]:
    """Return durations that the model makes, each with its number of frames, the shortest first.

    These are the bundle's own names; or, where it has none, a few whole seconds and the bundle's default.
    """
    possible, names, video = {*possible_frames(manifest)}, manifest.names, manifest.video
    found = {1: IMAGE} if 1 in possible else {}
    if names.durations:
        for name, frames in names.durations.items():
            found.setdefault(frames, name)
    else:
        usual = round(video.frames / video.fps, 3)
        for value in (*SECONDS, usual):
            if round(value * video.fps) in possible:
                found.setdefault(round(value * video.fps), f"{value:g}s")
    return {name: frames for frames, name in sorted(found.items())}


def possible_frames(manifest: Manifest) -> list[int]:
    """Return the numbers of frames that the bundle's profiles allow, ascending."""
    return _possible_frames(manifest.latent, manifest.profiles)


def possible_names(
    names: VideoNames, latent: LatentSpace, profiles: Mapping[str, Mapping[str, tuple[int, int]]]
) -> VideoNames:
    """Return the names that are possible with a model: a profile covers them, in whole patches where it needs them.

    Args:
        names: sizes and durations of a family.
        latent: latent space of the model.
        profiles: name -> axis -> smallest and largest size.
    """
    frames = {*_possible_frames(latent, profiles)}
    sizes = {
        name: {aspect: size for aspect, size in aspects.items() if _possible_size(size, latent, profiles)}
        for name, aspects in names.sizes.items()
    }
    return names.model_copy(
        update={
            "sizes": {name: aspects for name, aspects in sizes.items() if aspects},
            "durations": {name: count for name, count in names.durations.items() if count in frames},
        }
    )


def _possible_size(size: Size, latent: LatentSpace, profiles: Mapping[str, Mapping[str, tuple[int, int]]]) -> bool:
    if latent.whole_patches:
        patches = (latent.patch[2], latent.patch[1])
        if any(side % (latent.spatial_factor * patch) for side, patch in zip(size, patches, strict=True)):
            return False
    sides = {name: side // latent.spatial_factor for name, side in zip(("width", "height"), size, strict=True)}
    return any(
        all(axis not in profile or profile[axis][0] <= side <= profile[axis][1] for axis, side in sides.items())
        for profile in profiles.values()
    )


def _possible_frames(latent: LatentSpace, profiles: Mapping[str, Mapping[str, tuple[int, int]]]) -> list[int]:
    ranges = [profile.get("frames", (1, MOST_FRAMES)) for profile in profiles.values()]
    return [
        count
        for count in range(1, MOST_FRAMES + 1)
        if latent.frames.nearest(count) == (count, count)
        and any(low <= latent.latent_frames(count) <= high for low, high in ranges)
    ]


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and the last of each run without a gap in ascending numbers."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
