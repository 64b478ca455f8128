"""Images and clips from files, at a model's size."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import InputError
from adacache_runtime.media.frames import ClipSource, Frames, ImageSource, image_frame

Floats = NDArray[np.float32]


def read_image(source: ImageSource, name: str = "the image") -> Frames:
    """Return an image as a clip of one frame, (1, height, width, 3) RGB.

    Args:
        source: a path of an image, or of a clip, whose first frame is taken; a Pillow image; or an array (height,
            width, 3) uint8.
        name: how messages call an image that has no path.

    Raises:
        InputError: the file cannot be read, or it is no image.
    """
    if isinstance(source, str | os.PathLike):
        return np.stack([next(_decoded(Path(source)))])
    return image_frame(source, name)


def read_last_frames(source: ClipSource, count: int) -> Frames:
    """Return the last ``count`` frames of a clip, (count, height, width, 3) RGB.

    Args:
        source: a path, or an array (frames, height, width, 3) uint8.
        count: number of frames.

    Raises:
        InputError: the file cannot be read, it is no clip, or it has fewer frames.
    """
    if isinstance(source, str | os.PathLike):
        frames, name = list(deque(_decoded(Path(source)), maxlen=count)), str(source)
    else:
        frames, name = list(source[-count:]), "the clip"
        if source.ndim != 4 or source.shape[3] != 3 or source.dtype != np.uint8:
            raise InputError(
                f"the clip is an array {source.shape} of {source.dtype}; expected (frames, height, width, 3) of uint8"
            )
    if len(frames) < count:
        raise InputError(f"{name} has {len(frames)} frames; {count} are needed to continue it")
    return np.stack(frames)


def _decoded(path: Path) -> Iterator[NDArray[np.uint8]]:
    import av  # only here, so that who gives arrays needs no video library
    import av.error

    empty = True
    try:
        with av.open(str(path)) as container:
            if container.streams.video:
                for frame in container.decode(video=0):
                    empty = False
                    yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read as an image or a clip: {reason}") from error
    if empty:
        raise InputError(f"{path} has no picture in it")


def resize_to_fill(frames: Frames, height: int, width: int) -> Floats:
    """Resized, keeping the aspect, until they fill ``height`` x ``width``, the middle of that, as numbers.

    As Open-Sora does it: a single image with Pillow's bicubic filter, a clip with torch's bilinear one.
    Source: v1.2, ``opensora/datasets``, ``resize_crop_to_fill``.

    Args:
        frames: (frames, height, width, 3) RGB.
        height, width: to be.

    Returns:
        (3, frames, height, width) float32, black -1, white 1.
    """
    count, rows, columns, _ = frames.shape
    tall, wide = height / rows, width / columns
    size = (height, round(columns * tall)) if tall > wide else (round(rows * wide), width)
    image = count == 1
    values = frames.astype(np.float32)
    for axis, source, target in ((2, columns, size[1]), (1, rows, size[0])):
        if source == target:
            continue
        weights = _bicubic(source, target) if image else _bilinear(source, target)
        values = np.moveaxis(np.moveaxis(values, axis, -1) @ weights.T, -1, axis)
        if image:  # Pillow has bytes after the columns, too
            values = np.clip(np.floor(values + np.float32(0.5)), 0, 255)
    spare = [have - want for have, want in zip(size, (height, width), strict=True)]
    top, left = (round(pixels / 2) if image else pixels // 2 for pixels in spare)
    cropped = values[:, top : top + height, left : left + width]
    return np.ascontiguousarray((cropped / np.float32(127.5) - np.float32(1)).transpose(3, 0, 1, 2))


def _bilinear(source: int, target: int) -> Floats:
    """(target, source) weights of the two nearest pixels, whatever the scale."""
    centre = (np.arange(target) + 0.5) * source / target - 0.5
    return _normalised(np.maximum(1 - np.abs(np.clip(centre, 0, source - 1)[:, None] - np.arange(source)), 0))


def _bicubic(source: int, target: int) -> Floats:
    """(target, source) weights of Keys' cubic, a = -0.5, which widens where the picture shrinks."""
    scale = source / target
    centre = (np.arange(target) + 0.5) * scale - 0.5
    x = np.abs(centre[:, None] - np.arange(source)) / max(scale, 1.0)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return _normalised(np.where(x < 1, near, np.where(x < 2, far, 0)))


def _normalised(weights: NDArray[np.float64]) -> Floats:
    normal: Floats = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return normal
