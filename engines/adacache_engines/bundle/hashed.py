"""Files that were hashed once and are read again later: before a later read, each is found to be the same file still.

A file is known by its device, inode, size and times, as they were when it was hashed. Where they have changed, it is
hashed again: a file that was only copied or touched is taken, and one with another content is refused.
"""

import hashlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

HASHED_NBYTES = 1 << 18  # size of the pieces that are read and hashed
# A write this soon after another may leave the times as they were: file systems count in steps of up to two seconds.
STEP_NS = 2_000_000_000

State = tuple[int, ...]  # device, inode, size, and times of the last change of content and of anything
Progress = Callable[[int], None]


class Expected(Protocol):
    """The hash and the size that a manifest states for a file."""

    @property
    def sha256(self) -> str: ...

    @property
    def nbytes(self) -> int: ...


class HashedFiles:
    """The files that were found to have the hashes that are stated for them, and the state in which they had them."""

    def __init__(self) -> None:
        self._found: dict[tuple[Path, str], State] = {}

    def problem(self, folder: Path, name: str, expected: Expected, progress: Progress = lambda _: None) -> str | None:
        """Return what is wrong with a file; None = it has the size and the hash that are stated.

        The file is read only where it is not known to be the one that was hashed before.

        Args:
            folder, name: a folder, and the path of the file in it.
            expected: hash and size that are stated.
            progress: gets the size in bytes of each piece that is read.
        """
        path = folder / name
        try:
            before = path.lstat()
            if stat.S_ISLNK(before.st_mode):
                return f"{name} is a link, which engines do not follow (cp -rL makes a copy that has the files instead)"
            if not stat.S_ISREG(before.st_mode):
                return f"{name} is missing, and something that is no file has its name"
            if before.st_size != expected.nbytes:
                return f"{name} has {before.st_size} bytes instead of {expected.nbytes}"
            if self._found.get((path, expected.sha256)) == _state(before):
                return None
            began = time.time_ns()
            if sha256_file(path, progress) != expected.sha256:
                return f"{name} was changed after it was made"
            after = _state(path.lstat())
        except (FileNotFoundError, NotADirectoryError):
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
        if after == _state(before) and abs(began - before.st_mtime_ns) > STEP_NS:
            self._found[path, expected.sha256] = after
        return None


def _state(found: os.stat_result) -> State:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def sha256_file(path: Path, progress: Progress = lambda _: None) -> str:
    """Return the SHA-256 of a file in hexadecimal digits; ``progress`` gets the size in bytes of each piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while content := file.read(HASHED_NBYTES):
            digest.update(content)
            progress(len(content))
    return digest.hexdigest()
