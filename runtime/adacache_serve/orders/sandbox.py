"""The process in which images from clients are decoded and resized, with little memory, little time and no secrets.

    python -m adacache_serve.orders.sandbox CODEC HEIGHT WIDTH RULE [SHORTER SIDE] < image > pixels

It cannot open any file, so that whatever an image refers to, nothing but the image itself is read. And the content goes
to one of FFmpeg's decoders as it is, past its demuxers, which would take a playlist for a picture. An image may still
need more than it seems to: a few kilobytes of PNG can be 30 megapixels or a colour profile of gigabytes, and a JPEG may
paint the same pixels a thousand times.
"""

import base64
import resource
import sys
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from adacache_engines.errors import InputError
from adacache_runtime.media.frames import Frames
from adacache_runtime.media.pictures import middle_square, resize_image, stacked

if TYPE_CHECKING:
    from adacache_engines.bundle.latent_space import ResizeRule

CPU_SECONDS = 10
NBYTES = 3 * 2**29  # address space of the process; the largest images take 1 GiB
SIDE = 8192  # pixels
PIXELS = 2**25  # pixels; 7680x4320, and a little more
NOT_RESIZED = 3  # exit status: the image was decoded, and takes too much at the video's size
# one black pixel, decoded and resized before the limits are set, so that nothing has to be imported after that
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


def main(codec: str, height: int, width: int, rule: "ResizeRule", square: tuple[int, int] | None = None) -> None:
    """Decode the image on standard input, and write its pixels (height, width, 3) RGB to standard output.

    Args:
        codec: name of FFmpeg's decoder for the image.
        height, width: size of the video in pixels.
        rule: rule by which the image gets that size, see :func:`adacache_runtime.media.pictures.resize`.
        square: ``shorter`` and ``side`` of :func:`adacache_runtime.media.pictures.middle_square`, which is written too,
            as :func:`adacache_runtime.media.pictures.stacked` puts both together; None = it is not.
    """
    resize_image(decoded(PIXEL, "png"), 2, 2, rule)
    side = square[1] if square else 0
    set_limits(max(height, side) * max(width, side) * 3 * (2 if square else 1))
    image = decoded(sys.stdin.buffer.read(), codec)
    try:
        pixels = resize_image(image, height, width, rule)
        if square is not None:
            pixels = stacked([pixels, middle_square(image, *square)])
    except (MemoryError, InputError):
        raise SystemExit(NOT_RESIZED) from None
    sys.stdout.buffer.write(np.ascontiguousarray(pixels).data)
    sys.stdout.buffer.flush()


def set_limits(written_nbytes: int) -> None:
    """Limit what this process can do from now on; ``written_nbytes`` is the size that its output may have."""
    most = {
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_AS: NBYTES,
        resource.RLIMIT_FSIZE: written_nbytes,
        resource.RLIMIT_NOFILE: 3,  # as many as are open already, so that no other can be opened
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in most.items():
        resource.setrlimit(kind, (value, value))


def decoded(content: bytes, codec: str) -> Frames:
    """Return the image (1, height, width, 3) RGB that is the content of a file.

    Raises:
        ValueError: the image is too large, or there is none.
        av.error.FFmpegError: the content cannot be decoded.
    """
    context: Any = av.CodecContext.create(codec, "r")
    context.thread_count = 1
    context.options = {"max_pixels": str(PIXELS)}  # checked before there is memory for them
    frame = next(iter([*context.decode(av.Packet(content)), *context.decode(None)]), None)
    if frame is None or max(frame.width, frame.height) > SIDE:
        raise ValueError(f"expected an image with sides of at most {SIDE} pixels")
    return np.ascontiguousarray(frame.to_ndarray(format="rgb24"), np.uint8)[None]


if __name__ == "__main__":
    _, chosen, rows, columns, by, *more = sys.argv
    main(chosen, int(rows), int(columns), by, (int(more[0]), int(more[1])) if more else None)  # type: ignore[arg-type]
