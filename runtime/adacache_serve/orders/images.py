"""Images from clients, decoded in a sandbox: a process of its own with little memory, little time and no secrets.

The process cannot open any file, so that whatever an image refers to, nothing but the image itself is read.
"""

import base64
import binascii
import io
import os
import re
import resource
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import InputError
from adacache_runtime.media.video import Frames

SECONDS = 10
NBYTES = 2 * 2**30  # address space of the process
SIDE = 8192  # pixels
PIXELS = 2**25  # pixels; 7680x4320, and a little more
HEADER = struct.Struct("<II")  # height, width; then the pixels
# FFmpeg is given the format, by the file's first bytes: left to guess, it accepts playlists, which name other files
FORMATS = {
    "png_pipe": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "jpeg_pipe": re.compile(rb"\xff\xd8\xff"),
    "webp_pipe": re.compile(rb"RIFF....WEBP", re.DOTALL),
}
# one black pixel, decoded before the limits are set, so that nothing has to be imported after that
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
REFUSED = (
    f"the image cannot be decoded; expected a PNG, JPEG or WebP file with sides of at most {SIDE} pixels and at most "
    f"{PIXELS // 10**6} megapixels"
)


def decoded_base64(text: str) -> bytes:
    """Return the bytes of a text in base64, or of a ``data:`` URL with base64.

    Raises:
        InputError: the text is neither.
    """
    if text.startswith("data:"):
        head, separator, text = text.partition(",")
        if not separator or not head.endswith(";base64"):
            raise InputError("the image is a data: URL without base64; expected data:image/png;base64,...")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError("the image is not valid base64") from error


def decode_image(content: bytes) -> Frames:
    """Decode the content of an image file.

    Returns:
        (1, height, width, 3) RGB.

    Raises:
        InputError: the content is not an image, or takes too much memory or time.
    """
    file_format = next((name for name, begins in FORMATS.items() if begins.match(content)), None)
    if file_format is None:
        raise InputError(REFUSED)
    with tempfile.TemporaryFile() as pixels:  # a file, since the kernel limits its size; a pipe has no limit
        try:
            done = subprocess.run(  # noqa: S603 - the same interpreter, and this module
                [sys.executable, "-m", "adacache_serve.orders.images", file_format],
                input=content,
                stdout=pixels,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=_environment(),
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(f"the image was not decoded within {SECONDS} seconds; send a smaller image") from error
        if done.returncode:
            raise InputError(REFUSED)
        pixels.seek(0)
        height, width = HEADER.unpack(pixels.read(HEADER.size))
        return np.fromfile(pixels, np.uint8).reshape(1, height, width, 3)


def _environment() -> dict[str, str]:
    """Return the environment of the process: what it needs, and none of the server's secrets."""
    found = [str(Path(folder).resolve()) for folder in sys.path if folder]
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(found), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def write_image(path: Path, frames: Frames) -> None:
    """Store a decoded image, (1, height, width, 3) RGB, for :func:`read_image`."""
    with path.open("wb") as file:
        np.save(file, frames, allow_pickle=False)


def read_image(path: Path) -> Frames:
    """Read an image that :func:`write_image` stored."""
    frames: Frames = np.load(path, allow_pickle=False)
    return frames


def _limited(file_format: str) -> None:
    """Run the process: an image file comes on standard input, its pixels go to standard output."""
    _decoded(PIXEL, "png_pipe")
    most = {
        resource.RLIMIT_CPU: SECONDS,
        resource.RLIMIT_AS: NBYTES,
        resource.RLIMIT_FSIZE: HEADER.size + 3 * PIXELS,
        resource.RLIMIT_NOFILE: 3,  # as many as are open already, so that no other can be opened
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in most.items():
        resource.setrlimit(kind, (value, value))
    pixels = _decoded(sys.stdin.buffer.read(), file_format)
    sys.stdout.buffer.write(HEADER.pack(*pixels.shape[:2]))
    sys.stdout.buffer.write(pixels.data)
    sys.stdout.buffer.flush()


def _decoded(content: bytes, file_format: str) -> NDArray[np.uint8]:
    with av.open(io.BytesIO(content), "r", format=file_format) as container:
        (stream,) = container.streams.video
        stream.codec_context.thread_count = 1
        _check(stream.width, stream.height)
        frame = next(container.decode(stream))
        _check(frame.width, frame.height)
        return np.ascontiguousarray(frame.to_ndarray(format="rgb24"), np.uint8)


def _check(width: int, height: int) -> None:
    if not (1 <= width <= SIDE and 1 <= height <= SIDE and width * height <= PIXELS):
        raise SystemExit(1)


if __name__ == "__main__":
    _limited(sys.argv[1])
