"""Pictures from clients: decoded by a process of its own, which has little memory, little time and nothing to lose."""

import base64
import binascii
import io
import resource
import subprocess
import sys
from pathlib import Path

import av
import numpy as np

from adacache_engines.errors import InputError
from adacache_runtime.video import Frames

SECONDS = 10
NBYTES = 2 * 2**30  # of address space
SIDE = 8192  # pixels
# by how a file begins: FFmpeg is told the format, since left to guess it also knows playlists, which name other files
FORMATS = {b"\x89PNG\r\n\x1a\n": "png_pipe", b"\xff\xd8\xff": "jpeg_pipe", b"RIFF": "webp_pipe"}


def decoded_base64(text: str) -> bytes:
    """Of base64, or of a ``data:`` URL with it.

    Raises:
        InputError: it is neither.
    """
    if text.startswith("data:"):
        head, separator, text = text.partition(",")
        if not separator or not head.endswith(";base64"):
            raise InputError("the image is a data: URL that is not in base64; expected data:image/png;base64,...")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError("the image is not base64") from error


def decode_picture(content: bytes) -> Frames:
    """(1, height, width, 3) RGB of a file's content.

    Raises:
        InputError: it is no picture, or takes more memory or time than pictures do.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "adacache_serve.uploads"],
            input=content,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"the image was not decoded within {SECONDS} seconds; send a smaller one") from error
    if done.returncode:
        raise InputError(
            f"the image is no PNG, JPEG or WebP that can be read, or has a side of more than {SIDE} pixels"
        )
    frames: Frames = np.load(io.BytesIO(done.stdout), allow_pickle=False)
    return frames


def write_picture(path: Path, frames: Frames) -> None:
    with path.open("wb") as file:
        np.save(file, frames, allow_pickle=False)


def read_picture(path: Path) -> Frames:
    """What :func:`write_picture` wrote."""
    frames: Frames = np.load(path, allow_pickle=False)
    return frames


def _limited() -> None:
    """The process: a picture's file on standard input, its pixels on standard output."""
    for kind, most in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, NBYTES), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(kind, (most, most))
    content = sys.stdin.buffer.read()
    (file_format,) = [name for begins, name in FORMATS.items() if content.startswith(begins)]
    with av.open(io.BytesIO(content), "r", format=file_format) as container:
        (stream,) = container.streams.video
        if max(stream.width, stream.height) > SIDE:
            raise SystemExit(1)
        frame = next(container.decode(stream)).to_ndarray(format="rgb24")
    np.save(sys.stdout.buffer, frame[None].astype(np.uint8), allow_pickle=False)


if __name__ == "__main__":
    _limited()
