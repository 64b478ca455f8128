"""Images and clips from files, at a model's size."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import InputError
from adacache_runtime.media.frames import ClipSource, Frames, ImageSource, image_frame

if TYPE_CHECKING:  # a process that only resizes an image starts in half the time without it
    from adacache_engines.bundle.latent_space import ResizeRule

Floats = NDArray[np.float32]
NARROWEST = 100  # largest ratio of an image's sides where its middle is taken of a resized whole

# FFmpeg's names of what it may take a file for. Left to guess, it accepts playlists and lists of files, and opens the
# other files and addresses that these name; none of these formats names any.
FORMATS = "png_pipe,apng,jpeg_pipe,webp_pipe,gif,bmp_pipe,tiff_pipe,mov,matroska,avi,mpegts"
MAX_PIXELS = 2**26  # of a picture; 8192x8192
EXPECTED = (
    "expected PNG, JPEG, WebP, GIF, BMP or TIFF, or a clip in MP4, MOV, WebM, Matroska, AVI or MPEG-TS, with at most "
    f"{MAX_PIXELS} pixels a picture"
)


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
    if len({frame.shape for frame in frames}) > 1:
        raise InputError(f"{name} has frames of different sizes at its end; expected one size: encode it again")
    return np.stack(frames)


def _decoded(path: Path) -> Iterator[NDArray[np.uint8]]:
    import av  # only here, so that who gives arrays needs no video library
    import av.error

    try:
        file = path.open("rb")  # here, since to FFmpeg a name can be an address or a pattern of names
    except (OSError, ValueError) as error:  # the name may be none that a file can have
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read as an image or a clip: {reason}") from error
    empty = True
    with file:
        try:
            with av.open(file, "r", options={"format_whitelist": FORMATS}) as container:
                stream = next(iter(container.streams.video), None)
                if stream is not None and stream.codec_context is not None:  # there is a decoder for it
                    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
                    for frame in container.decode(stream):
                        empty = False
                        yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{path} cannot be read as an image or a clip: {reason}; {EXPECTED}") from error
    if empty:
        raise InputError(f"{path} has no picture in it; {EXPECTED}")


def resize(frames: Frames, height: int, width: int, rule: "ResizeRule") -> Floats:
    """Return frames at a video's size, by the rule of its model.

    Args:
        frames: image or clip (frames, height, width, 3) RGB.
        height, width: size of the video in pixels.
        rule: ``fill`` as :func:`resize_to_fill`, ``stretch`` as :func:`stretch`.

    Returns:
        Pixels (3, frames, height, width) float32, black -1, white 1.
    """
    return resize_to_fill(frames, height, width) if rule == "fill" else stretch(frames, height, width)


def resize_image(image: Frames, height: int, width: int, rule: "ResizeRule") -> Frames:
    """Return an image at a video's size, as numbers from 0 to 255, so that it can be stored.

    :func:`resize` of what is returned changes nothing more: it gives what it gives of ``image``, to the bit.

    Args:
        image: image (1, height, width, 3) RGB.
        height, width, rule: as of :func:`resize`.

    Returns:
        (1, height, width, 3) RGB.
    """
    return _filled(image[0], height, width) if rule == "fill" else _stretched(image, height, width)


def middle_square(image: Frames, shorter: int, side: int) -> Frames:
    """Return the middle of an image whose shorter side Pillow's bicubic filter resizes to a number of pixels.

    The longer side keeps the image's aspect. Source: transformers, ``CLIPImageProcessor``.

    Args:
        image: image (1, height, width, 3) RGB.
        shorter: pixels of the shorter side.
        side: pixels of each side of the middle, at most ``shorter``.

    Returns:
        (1, side, side, 3) RGB.

    Raises:
        InputError: the image is so narrow that its resized whole would take much memory.
    """
    from PIL import Image  # only here and below, so that who gives no pictures needs no library for them

    _, height, width, _ = image.shape
    if max(height, width) > NARROWEST * min(height, width):
        raise InputError(
            f"an image of {width}x{height} pixels is too narrow for this model; give one whose longer side is at most"
            f" {NARROWEST} times the other"
        )
    longer = int(shorter * max(height, width) / min(height, width))
    size = (shorter, longer) if width <= height else (longer, shorter)
    left, top = ((have - side) // 2 for have in size)
    resized = Image.fromarray(image[0]).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + side, top + side)))[None]


def stacked(pictures: Sequence[Frames]) -> Frames:
    """Return images (1, height, width, 3) of different sizes as one array.

    Each is in the upper left corner of its frame, and black is beside it.
    """
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    whole = np.zeros((len(pictures), height, width, 3), np.uint8)
    for frame, picture in zip(whole, pictures, strict=True):
        frame[: picture.shape[1], : picture.shape[2]] = picture[0]
    return whole


def resize_to_fill(frames: Frames, height: int, width: int) -> Floats:
    """Return the middle of frames that are resized, with their aspect, until they fill a size.

    As Open-Sora does it: a single image with Pillow's bicubic filter, a clip with torch's bilinear one.
    Source: v1.2, ``opensora/datasets``, ``resize_crop_to_fill``.

    Args:
        frames: image or clip (frames, height, width, 3) RGB.
        height, width: size to fill in pixels.

    Returns:
        Pixels (3, frames, height, width) float32, black -1, white 1.
    """
    if len(frames) == 1:
        return _numbers(_filled(frames[0], height, width))
    size = _size_to_fill(frames[0], height, width)
    top, left = ((have - want) // 2 for have, want in zip(size, (height, width), strict=True))
    return _numbers(_bilinear(frames, size)[:, top : top + height, left : left + width])


def stretch(frames: Frames, height: int, width: int) -> Floats:
    """Return frames that are resized to a size whatever their aspect, with Pillow's Lanczos filter.

    Source: diffusers, ``VaeImageProcessor.resize``.

    Args:
        frames: image or clip (frames, height, width, 3) RGB.
        height, width: size in pixels.

    Returns:
        Pixels (3, frames, height, width) float32, black -1, white 1.
    """
    return _numbers(_stretched(frames, height, width))


def _size_to_fill(frame: Frames, height: int, width: int) -> tuple[int, int]:
    """Return the size (height, width) to which a frame (height, width, 3) is resized before its middle is taken."""
    rows, columns, _ = frame.shape
    tall, wide = height / rows, width / columns
    return (height, round(columns * tall)) if tall > wide else (round(rows * wide), width)


def _filled(frame: Frames, height: int, width: int) -> Frames:
    """Return the middle (1, height, width, 3) of an image (height, width, 3) that Pillow resizes until it fills a size.

    The columns are resized first, in any version of Pillow. Each column is then resized by itself, so those that are
    not in the middle can be left out before that: a wide image takes no more memory than its middle needs.
    """
    from PIL import Image

    size = _size_to_fill(frame, height, width)
    top, left = (round((have - want) / 2) for have, want in zip(size, (height, width), strict=True))
    wide = Image.fromarray(frame).resize((size[1], len(frame)), Image.Resampling.BICUBIC)
    middle = wide.crop((left, 0, left + width, len(frame)))
    resized = middle.resize((width, size[0]), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((0, top, width, top + height)))[None]


def _stretched(frames: Frames, height: int, width: int) -> Frames:
    """Return frames (frames, height, width, 3) that Pillow resizes to a size."""
    from PIL import Image

    made = [Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS) for frame in frames]
    return np.stack([np.asarray(frame) for frame in made])


def _bilinear(frames: Frames, size: tuple[int, int]) -> Floats:
    """Return frames (frames, *size, 3) of numbers from 0 to 255, resized as torch does it."""
    values = frames.astype(np.float32)
    for axis, target in ((2, size[1]), (1, size[0])):
        source = frames.shape[axis]
        if source != target:
            values = np.moveaxis(np.moveaxis(values, axis, -1) @ _nearest_two(source, target).T, -1, axis)
    return values


def _numbers(values: Frames | Floats) -> Floats:
    """Return (3, frames, height, width), black -1 and white 1, of values (frames, height, width, 3) from 0 to 255."""
    return np.ascontiguousarray((values.astype(np.float32) / np.float32(127.5) - np.float32(1)).transpose(3, 0, 1, 2))


def _nearest_two(source: int, target: int) -> Floats:
    """Return the weights (target, source) of the two nearest pixels, whatever the scale."""
    centre = (np.arange(target) + 0.5) * source / target - 0.5
    weights = np.maximum(1 - np.abs(np.clip(centre, 0, source - 1)[:, None] - np.arange(source)), 0)
    normal: Floats = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return normal
