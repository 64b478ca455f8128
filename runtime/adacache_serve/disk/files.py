"""Writes that survive a power cut, and that leave nothing where a disk is full."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, or the limit of a file's size
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)  # file descriptors, memory, processes


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing_all(path: Path) -> Iterator[BinaryIO]:
    """Open a new file, which is on the disk with its name when the block ends; after an error there is none.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        with path.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        sync(path.parent)
    except BaseException:
        with suppress(OSError):  # the disk's error is the one to tell
            path.unlink(missing_ok=True)
        raise


def is_full(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, says that a file does not fit on its disk."""
    return _has(error, FULL)


def is_short(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, says that the process or the machine has no more to give."""
    return _has(error, SHORT)


def _has(error: BaseException | None, numbers: tuple[int, ...]) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in numbers:
            return True
        error = error.__cause__
    return False
