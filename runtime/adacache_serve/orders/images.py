"""Images from clients: decoded and resized in a process of their own, and stored at the size of their video."""

import base64
import binascii
import io
import math
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.latent_space import ResizeRule
from adacache_engines.errors import InputError
from adacache_runtime.media.frames import Frames
from adacache_runtime.settled import Settled
from adacache_serve.disk.files import writing_all
from adacache_serve.orders.check import FieldError
from adacache_serve.orders.sandbox import CPU_SECONDS, NOT_RESIZED, PIXELS, SIDE

PROGRAM = (sys.executable, "-m", "adacache_serve.orders.sandbox")
SECONDS = 6 * CPU_SECONDS  # for which the process may run, on a machine that has other things to do
LOOK_SECONDS = 0.05  # between two looks at whether the client is still there
# FFmpeg's decoders, by the first bytes of a file; none else is ever called
CODECS = {
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "mjpeg": re.compile(rb"\xff\xd8\xff"),
    "webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
}
REFUSED = (
    f"the image cannot be decoded; expected a PNG, JPEG or WebP file with sides of at most {SIDE} pixels and at most "
    f"{PIXELS // 10**6} megapixels"
)


def image_of_order(
    image: str | bytes, settled: Settled, bundle: Bundle, given_up: threading.Event | None = None
) -> Frames:
    """Decode the image of an order, at the size of its video.

    Args:
        image: the content of the file, or a text as of :func:`decoded_base64`.
        settled: the checked order.
        bundle: the bundle that it is for.
        given_up: as of :func:`decode_image`.

    Returns:
        As of :func:`decode_image`, with what the image encoder sees where the model attends to states of the image.

    Raises:
        FieldError: as of :func:`decode_image`.
    """
    manifest = bundle.manifest
    square = None if manifest.image is None else (manifest.image.shorter, manifest.image.side)
    try:
        content = decoded_base64(image) if isinstance(image, str) else image
        return decode_image(content, settled.height, settled.width, manifest.latent.resize, given_up, square)
    except InputError as error:
        raise FieldError("image", str(error)) from error


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


def decode_image(
    content: bytes,
    height: int,
    width: int,
    rule: ResizeRule,
    given_up: threading.Event | None = None,
    square: tuple[int, int] | None = None,
) -> Frames:
    """Decode the content of an image file, and resize the image as the runtime does it.

    Args:
        content: the file's content.
        height, width: size of the video in pixels.
        rule: rule by which the image gets that size, see :func:`adacache_runtime.media.pictures.resize`.
        given_up: set when nobody waits for the image any more; the process is killed then.
        square: ``shorter`` and ``side`` of :func:`adacache_runtime.media.pictures.middle_square`; None = without it.

    Returns:
        (1, height, width, 3) RGB; or with ``square`` both, as :func:`adacache_runtime.media.pictures.stacked` has them.

    Raises:
        InputError: the content is not an image, or takes too much memory or time; or it was given up.
    """
    codec = next((name for name, begins in CODECS.items() if begins.match(content)), None)
    if codec is None:
        raise InputError(REFUSED)
    # files in memory: the kernel limits their size, which it does not do with a pipe, and no disk can be full
    with _memory_file() as image, _memory_file() as pixels:
        image.write(content)
        image.flush()
        image.seek(0)
        process = subprocess.Popen(  # noqa: S603 - the same interpreter, and a module of this package
            [*PROGRAM, codec, str(height), str(width), rule, *map(str, square or ())],
            stdin=image,
            stdout=pixels,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_environment(),
        )
        try:
            status = _status(process, given_up or threading.Event())
        finally:
            process.kill()
            process.wait()
        if status == NOT_RESIZED:
            raise InputError(
                f"the image takes too much memory at the video's size, {width}x{height}; send one whose sides are "
                "nearer to that in their proportion"
            )
        pixels.seek(0)
        read = np.fromfile(pixels, np.uint8)
    side = square[1] if square else 0
    shape = (2 if square else 1, max(height, side), max(width, side), 3)
    if status or read.size != math.prod(shape):
        raise InputError(REFUSED)
    return read.reshape(shape)


def _memory_file() -> BinaryIO:
    return os.fdopen(os.memfd_create("image"), "w+b")


def _status(process: subprocess.Popen[bytes], given_up: threading.Event) -> int:
    """Return the exit status of a process.

    Raises:
        InputError: it has not ended in time, or is given up.
    """
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if given_up.is_set():
            raise InputError("the image was not decoded, since the client closed the connection")
        try:
            return process.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            pass
    raise InputError(f"the image was not decoded within {SECONDS} seconds; send a smaller image")


def _environment() -> dict[str, str]:
    """Return the environment of the process: what it needs, and none of the server's secrets."""
    found = [str(Path(folder).resolve()) for folder in sys.path if folder]
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(found), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def write_image(path: Path, image: Frames) -> None:
    """Store an image as :func:`decode_image` returns it, for :func:`read_image`.

    Raises:
        OSError: the disk is full or does not work; nothing is left there.
    """
    content = io.BytesIO()  # numpy writes to a file by itself, and does not tell why it cannot
    np.save(content, image, allow_pickle=False)
    with writing_all(path) as file:
        file.write(content.getbuffer())


def read_image(path: Path) -> Frames:
    """Read an image that :func:`write_image` stored."""
    image: Frames = np.load(path, allow_pickle=False)
    return image
