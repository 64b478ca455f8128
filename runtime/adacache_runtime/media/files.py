"""Result files, written whole or not at all.

A file is made beside its destination and renamed, and links are followed first, so that a link stays one. A FIFO, a
device or a standard stream is written into: to rename over it would put a file in the place of ``/dev/null``.
"""

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from adacache_engines.errors import InputError

STANDARD_STREAMS = (1, 2)  # descriptors of standard output and standard error


def destination(path: Path) -> Path:
    """Return the path of the file that is made or replaced when ``path`` is written: the end of all links."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # of a name that no file can have
        return path


def check_writable(path: Path) -> None:
    """Check that ``path`` can be written, before the work that fills it: a file is made in its folder, and deleted.

    Raises:
        InputError: its folder is missing or takes no files, its name is not possible, or it is a folder, a block device
            or a socket.
    """
    with _explained(path):
        if _takes_bytes(path):
            if path.is_fifo():  # to open it would be to wait for its reader
                if not os.access(path, os.W_OK):
                    raise PermissionError("no permission to write into it")
            else:
                os.close(_opened(path))
            return
        part = _part(path)
        part.open("xb").close()
        part.unlink()


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes its name, and the place of an older one, when the block ends without an error.

    What is written to a FIFO, a character device or a standard stream of this process is sent there when the block
    ends without an error.

    Raises:
        InputError: as :func:`check_writable`, or the disk is full; nothing is left there, and an older file stays.
    """
    with _explained(path):
        if _takes_bytes(path):
            with tempfile.TemporaryFile() as file:
                yield file
                file.seek(0)
                with os.fdopen(_opened(path), "wb") as stream:
                    shutil.copyfileobj(file, stream)
            return
        part = _part(path)
        try:
            with part.open("xb") as file:
                yield file
            part.replace(destination(path))
        finally:
            with suppress(OSError):  # the error that led here is the one to tell
                part.unlink(missing_ok=True)


def standard_stream(path: Path) -> int | None:
    """Return the descriptor of the standard stream that ``path`` leads to, such as 1 for ``/dev/stdout``; else None."""
    for number in STANDARD_STREAMS:
        with suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(number)):
                return number
    return None


def _takes_bytes(path: Path) -> bool:
    """Whether something is at a path that bytes are written into, and no file that is made or replaced.

    Raises:
        InputError: the path's folder is missing, or something is there that takes no bytes.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        folder = destination(path).parent if path.is_symlink() else path.parent
        if not destination(path).parent.is_dir():
            raise InputError(f"{path} cannot be written: there is no folder {folder}; create it first") from None
        return False
    except ValueError as error:  # a character that no name may have
        raise InputError(f"{str(path)!r} cannot be written: {error}; choose another name") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} cannot be written: it is a folder; name a file")
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or standard_stream(path) is not None:
        return True
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} cannot be written: it is a block device or a socket; name a file")
    return False


def _opened(path: Path) -> int:
    """Return a descriptor that writes into a FIFO, a device or a standard stream."""
    number = standard_stream(path)
    if number is not None:
        return os.dup(number)  # with the stream's own position, where it goes to a file
    return os.open(path, os.O_WRONLY | os.O_NOCTTY)


def _part(path: Path) -> Path:
    """Return a new name in the folder of a file's destination, so that the rename is one step."""
    return destination(path).with_name(f".{secrets.token_hex(6)}.part")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
