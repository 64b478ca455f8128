"""Videos as files: .mp4 (H.264), .png (one frame), .npz (the pixels themselves)."""

import io
import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.error
import numpy as np
from av.video.stream import VideoStream

from adacache_engines.errors import InputError, OutOfRangeError
from adacache_runtime.media.files import writing
from adacache_runtime.media.frames import Frames as Frames
from adacache_runtime.media.frames import to_pixels as to_pixels

Shape = tuple[int, int, int, int]  # of all frames
Add = Callable[[Frames], None]

MIN_FPS, MAX_FPS = 0.01, 240
MAX_SIDE = 16384  # pixels, of an H.264 picture
BT601 = 6  # the matrix that the conversion to YUV uses; untagged, large videos are taken for BT.709
LIMITED = 1  # luma from 16 to 235, which is what players expect
# The same frames must give the same bytes: one thread, and no macroblock tree, whose vector code depends on where in
# memory the frames lie. 17 is visually lossless.
H264 = {"crf": "17", "preset": "medium", "threads": "1", "flags": "+bitexact", "x264-params": "no-mbtree=1"}
MP4 = {"fflags": "+bitexact"}  # leaves times and the version of the muxer out


def write_video(path: Path, frames: Frames, fps: float, zoom: int = 1) -> None:
    """Write a video that is in memory as a whole; the same frames give the same bytes, in one piece or in several.

    A failure leaves nothing behind, and an older file of that name as it was.

    Args:
        path: ``.mp4``; ``.png`` for a single frame; ``.npz``, uncompressed, array ``frames``.
        frames: (frames, height, width, 3) RGB. H.264 has even sizes only: the last row or column of an odd one is
            doubled.
        fps: frames a second, to 1/1001 exactly.
        zoom: side of the square that a pixel becomes in ``.mp4`` and ``.png``; ``.npz`` keeps the frames as they are.

    Raises:
        InputError: unknown suffix, no folder to write in, no frames, or several of them for a ``.png``.
        OutOfRangeError: fps, zoom, or the size of the zoomed picture.
    """
    _check_frames(frames)
    count, height, width, _ = frames.shape
    with writing_video(path, count, (height, width), fps, zoom) as write:
        write(frames)


@contextmanager
def writing_video(
    path: Path, frame_count: int, size: tuple[int, int], fps: float, zoom: int = 1
) -> Iterator[Callable[[Frames], None]]:
    """Write a video part by part, none of which is kept.

    Yields:
        A function that takes some frames at a time, (some frames, height, width, 3) RGB.

    Args:
        path, fps, zoom: as in :func:`write_video`.
        frame_count: number of frames of all parts together.
        size: (height, width) in pixels.

    Raises:
        InputError: as in :func:`write_video`, or the number or size of the frames differs from what was announced.
        OutOfRangeError: as in :func:`write_video`.
    """
    check_video(path, frame_count, size, fps, zoom)
    written = 0
    with writing(path) as file, _WRITERS[path.suffix.lower()](file, (frame_count, *size, 3), fps, zoom) as add:

        def write(frames: Frames) -> None:
            nonlocal written
            _check_frames(frames)
            written += len(frames)
            if frames.shape[1:3] != size or written > frame_count:
                raise InputError(
                    f"{path}: frames {frames.shape[:3]}, {written} so far; expected {frame_count} of {size}"
                )
            add(frames)

        yield write
        if written != frame_count:
            raise InputError(f"{path}: {written} frames came; expected {frame_count}")


def _check_frames(frames: Frames) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or frames.size == 0:
        raise InputError(
            f"frames are {frames.dtype} {frames.shape}: expected uint8 (frames, height, width, 3), none of them 0"
        )


def check_video(path: Path, frame_count: int, size: tuple[int, int], fps: float, zoom: int = 1) -> None:
    """Check that frames can become a file of that name; ``size`` is (height, width) in pixels.

    Whether there is a place for the file, :func:`adacache_runtime.media.files.check_writable` tells.

    Raises:
        InputError, OutOfRangeError: as in :func:`write_video`.
    """
    if path.suffix.lower() not in _WRITERS:
        raise InputError(f"{path} has an unknown suffix; known: {', '.join(_WRITERS)}")
    if path.suffix.lower() == ".png" and frame_count != 1:
        raise InputError(f"{path}: a .png holds one frame, not {frame_count}; name an .mp4 or .npz")
    if not (math.isfinite(fps) and MIN_FPS <= fps <= MAX_FPS):
        raise OutOfRangeError(f"{fps} frames per second: expected {MIN_FPS} to {MAX_FPS}")
    if zoom < 1 or zoom * max(size) > MAX_SIDE:
        raise OutOfRangeError(
            f"zoom {zoom} of {size[0]}x{size[1]} pixels: expected at least 1, and no side above {MAX_SIDE}"
        )


@contextmanager
def _mp4(file: BinaryIO, shape: Shape, fps: float, zoom: int) -> Iterator[Add]:
    encoded = io.BytesIO()  # the muxer goes back to fill in sizes; on the disk its errors would be FFmpeg's
    with av.open(encoded, "w", format="mp4", options=MP4) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=H264)
        assert isinstance(stream, VideoStream)
        height, width = (zoom * side for side in shape[1:3])
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = stream.codec_context
        context.thread_count, context.colorspace, context.color_range = 1, BT601, LIMITED

        def add(frames: Frames) -> None:
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(_even(_zoomed(frame, zoom)), format="rgb24")
                container.mux(stream.encode(picture))

        yield add
        container.mux(stream.encode())
    file.write(encoded.getbuffer())


@contextmanager
def _png(file: BinaryIO, _shape: Shape, _fps: float, zoom: int) -> Iterator[Add]:
    def add(frames: Frames) -> None:
        picture = np.ascontiguousarray(_zoomed(frames[0], zoom))
        context: Any = av.CodecContext.create("png", "w")
        context.height, context.width, _ = picture.shape
        context.pix_fmt, context.time_base = "rgb24", Fraction(1)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        for packet in [*context.encode(frame), *context.encode()]:
            file.write(bytes(packet))

    yield add


@contextmanager
def _npz(file: BinaryIO, shape: Shape, _fps: float, _zoom: int) -> Iterator[Add]:
    """Write the bytes of ``numpy.savez(file, frames=frames)``."""
    with zipfile.ZipFile(file, "w") as archive, archive.open("frames.npy", "w", force_zip64=True) as entry:
        described = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(entry, described)

        def add(frames: Frames) -> None:
            entry.write(np.ascontiguousarray(frames).data)

        yield add


_WRITERS: dict[str, Callable[[BinaryIO, Shape, float, int], AbstractContextManager[Add]]] = {
    ".mp4": _mp4,
    ".png": _png,
    ".npz": _npz,
}


def _zoomed(picture: Frames, zoom: int) -> Frames:
    return picture.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _even(picture: Frames) -> Frames:
    height, width, _ = picture.shape
    return np.ascontiguousarray(np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
