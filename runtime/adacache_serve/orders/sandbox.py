"""The process in which images from clients are decoded and resized, with little memory, little time and no secrets.

    python -m adacache_serve.orders.sandbox FORMAT HEIGHT WIDTH RULE < image > pixels

It cannot open any file, so that whatever an image refers to, nothing but the image itself is read. An image may still
need more than it seems to: a few kilobytes of PNG can be 30 megapixels or a colour profile of gigabytes, and a JPEG may
paint the same pixels a thousand times.
"""

import base64
import io
import resource
import sys
from typing import TYPE_CHECKING

import av
import numpy as np
from numpy.typing import NDArray

from adacache_runtime.media.frames import Frames
from adacache_runtime.media.pictures import resize_image

if TYPE_CHECKING:
    from adacache_engines.bundle.latent_space import ResizeRule

CPU_SECONDS = 10
NBYTES = 2 * 2**30  # address space of the process
SIDE = 8192  # pixels
PIXELS = 2**25  # pixels; 7680x4320, and a little more
NOT_RESIZED = 3  # exit status: the image was decoded, and takes too much at the video's size
# one black pixel, decoded and resized before the limits are set, so that nothing has to be imported after that
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


def main(file_format: str, height: int, width: int, rule: "ResizeRule") -> None:
    """Decode the image on standard input, and write its pixels (height, width, 3) RGB to standard output.

    Args:
        file_format: name of FFmpeg's demuxer for the image.
        height, width: size of the video in pixels.
        rule: rule by which the image gets that size, see :func:`adacache_runtime.media.pictures.resize`.
    """
    resize_image(decoded(PIXEL, "png_pipe"), 2, 2, rule)
    set_limits(height * width * 3)
    frame = decoded(sys.stdin.buffer.read(), file_format)
    try:
        pixels = resize_image(frame, height, width, rule)
    except MemoryError:
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


def decoded(content: bytes, file_format: str) -> Frames:
    """Return the image (1, height, width, 3) RGB in a file of this format; the process ends where it is too large."""
    with av.open(io.BytesIO(content), "r", format=file_format) as container:
        (stream,) = container.streams.video
        stream.codec_context.thread_count = 1
        _check(stream.width, stream.height)
        frame = next(container.decode(stream))
        _check(frame.width, frame.height)
        pixels: NDArray[np.uint8] = np.ascontiguousarray(frame.to_ndarray(format="rgb24"), np.uint8)
        return pixels[None]


def _check(width: int, height: int) -> None:
    if not (1 <= width <= SIDE and 1 <= height <= SIDE and width * height <= PIXELS):
        raise SystemExit(1)


if __name__ == "__main__":
    _, chosen, rows, columns, by = sys.argv
    main(chosen, int(rows), int(columns), by)  # type: ignore[arg-type]
