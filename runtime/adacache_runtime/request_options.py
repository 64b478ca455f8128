"""A request from the words that people use: a size such as ``832x480``, a duration such as ``4s``, a policy's name."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import Manifest
from adacache_engines.bundle.video_sizes import frames_of, size_of
from adacache_engines.errors import InputError
from adacache_runtime.caching.policy import Granularity, Scope
from adacache_runtime.media.frames import ClipSource, ImageSource
from adacache_runtime.policy_names import PolicyChoice, chosen_policy
from adacache_runtime.request import Request, several


class RequestOptions(TypedDict, total=False):
    """Everything that can be said of a generation beside its prompt; what is left out is the bundle's default.

    ``size`` is ``WIDTHxHEIGHT`` or a named size, with ``aspect`` WIDTH:HEIGHT; or ``width`` and ``height`` in pixels.
    ``duration`` is ``image`` or seconds such as ``2s``, instead of ``frames``. ``image`` is one image or several, each
    a path, a Pillow image or an array (height, width, 3) uint8, and ``image_at`` their frames. ``policy`` is a name
    with any wrappers, a path, a mapping, or an object. The rest is as in :class:`adacache_runtime.request.Request`.
    """

    negative_prompt: str | Sequence[str]
    size: str | None
    aspect: str | None
    width: int | None
    height: int | None
    frames: int | None
    duration: str | None
    fps: float | Sequence[float] | None
    seed: int
    policy: PolicyChoice
    steps: int | None
    guidance: float | None
    guidance_2: float | None
    sampler: str | None
    image: ImageSource | Sequence[ImageSource]
    image_at: int | Sequence[int]
    clip: ClipSource | None
    edit_ratio: float
    loops: int
    aesthetic: float | None
    motion: float | None
    camera: str | None
    latents: NDArray[np.float32] | None
    mask: NDArray[np.float32] | None
    noise: NDArray[np.float32] | None
    video_condition: NDArray[np.float32] | None
    image_square: NDArray[np.uint8] | None
    image_states: NDArray[np.float32] | None
    granularity: Granularity | None
    scope: Scope
    keep_calls: bool
    idle_call: bool
    tile: int | None


class VideoSize(TypedDict):
    """Size in pixels and number of frames of a request; None = the bundle's default."""

    height: int | None
    width: int | None
    frames: int | None


def request_from(manifest: Manifest, prompt: str | Sequence[str], options: RequestOptions) -> Request:
    """Return the request for a bundle that a prompt and options make.

    Args:
        manifest: manifest of the bundle, whose named sizes and policies count.
        prompt: one prompt, or several that are made at once.
        options: everything else.

    Raises:
        InputError: an option or a name is unknown, or two options say the same in different ways.
        OutOfRangeError: the model makes no video of that duration.
    """
    rest: dict[str, Any] = dict(options)
    unknown = sorted(rest.keys() - RequestOptions.__annotations__.keys())
    if unknown:
        raise InputError(
            f"{', '.join(unknown)} cannot be chosen; the options are {', '.join(RequestOptions.__annotations__)}"
        )
    fps = several(rest["fps"]) if rest.get("fps") is not None else None
    size = {name: rest.pop(name, None) for name in ("size", "aspect", "width", "height", "frames", "duration")}
    if "policy" in rest:
        rest["policy"] = chosen_policy(rest["policy"], manifest.policies)
    renamed: Mapping[str, str] = {"negative_prompt": "negative_prompts", "image": "images"}
    for name, field in renamed.items():
        if name in rest:
            rest[field] = several(rest.pop(name))
    return Request(prompts=several(prompt), **video_size(manifest, **size, fps=fps[0] if fps else None), **rest)


def video_size(
    manifest: Manifest,
    size: str | None = None,
    aspect: str | None = None,
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
    duration: str | None = None,
    fps: float | None = None,
) -> VideoSize:
    """Return the size and the number of frames that options name, for a bundle.

    Args:
        manifest: manifest of the bundle.
        size: ``WIDTHxHEIGHT``, or a named size.
        aspect: WIDTH:HEIGHT of a named size.
        width, height: pixels, instead of ``size``.
        frames: number of frames.
        duration: ``image``, or seconds such as ``2s``, instead of ``frames``.
        fps: frames per second by which the duration is counted; None = the bundle's.

    Raises:
        InputError: a name is unknown, or two options say the same in different ways.
        OutOfRangeError: the model makes no video of that duration.
    """
    if duration and frames is not None:
        raise InputError("frames and duration are both given; give one of them")
    if any(asked is not None for asked in (size, aspect, width, height)):
        width, height = size_of(manifest, size, width, height, aspect)
    if duration:
        frames = frames_of(manifest, duration, fps)
    return VideoSize(height=height, width=width, frames=frames)
