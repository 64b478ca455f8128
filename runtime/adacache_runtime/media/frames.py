"""Frames as arrays, and the kinds of sources that they come from; nothing here needs a video library."""

import os
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import InputError, NonFiniteError

Frames = NDArray[np.uint8]  # (frames, height, width, 3), RGB


class PillowImage(Protocol):
    """The part of ``PIL.Image.Image`` that is used, so that Pillow need not be imported."""

    def convert(self, mode: str, /) -> Any: ...


ImageSource = str | os.PathLike[str] | PillowImage | NDArray[np.uint8]  # an array is (height, width, 3) RGB
ClipSource = str | os.PathLike[str] | Frames


def image_frame(image: PillowImage | NDArray[np.uint8], name: str) -> Frames:
    """Return an image in memory as a clip of one frame, (1, height, width, 3) RGB.

    Args:
        image: a Pillow image, or an array (height, width, 3) uint8.
        name: how messages call it.

    Raises:
        InputError: the array has another shape or dtype, or it is neither.
    """
    if isinstance(image, np.ndarray):
        pixels = image
    elif hasattr(image, "convert"):
        pixels = np.asarray(image.convert("RGB"))
    else:
        raise InputError(
            f"{name} is a {type(image).__name__}; expected a path, a Pillow image, or an array (height, width, 3) uint8"
        )
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise InputError(
            f"{name} is an array {pixels.shape} of {pixels.dtype}; expected (height, width, 3) of uint8, 0 to 255 RGB"
        )
    return np.ascontiguousarray(pixels)[None]


def to_pixels(latents: NDArray[np.float32], name: str = "the final latents") -> Frames:
    """Return pixels as Open-Sora saves them.

    Args:
        latents: (channels, frames, height, width), three channels, black -1, white 1; values beyond are cut off.
        name: how messages call them.

    Returns:
        (frames, height, width, channels), 0 to 255.

    Raises:
        InputError: not four axes, or not three channels.
        NonFiniteError: NaN or infinity among the values.
    """
    if latents.ndim != 4 or latents.shape[0] != 3:
        raise InputError(
            f"latents {latents.shape} are no pixels: expected (3, frames, height, width); "
            "latents of another space need their decoder first"
        )
    if not np.isfinite(latents).all():
        raise NonFiniteError(f"NaN or infinity in {name}: they make no video")
    unit = (np.clip(latents, -1, 1) + 1) / 2
    return (unit * 255 + 0.5).astype(np.uint8).transpose(1, 2, 3, 0)
