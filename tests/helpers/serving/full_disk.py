"""A disk that becomes full while a file is written to it."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Full(io.FileIO):
    """A file that takes half of what is written to it, and then no more.

    Attributes:
        number: number of the system's error.
    """

    number = 0

    def write(self, content: Any) -> int:
        """Write half of the content.

        Raises:
            OSError: the disk is full.
        """
        view = memoryview(content).cast("B")
        super().write(view[: len(view) // 2])
        raise OSError(self.number, os.strerror(self.number))


@contextmanager
def full_disk(folder: Path, number: int) -> Iterator[list[Path]]:
    """Let every file that is opened for writing in a folder or below it become full; yield the files that were.

    Args:
        folder: the folder.
        number: number of the system's error, such as ``errno.ENOSPC``.
    """
    tried: list[Path] = []
    real = Path.open

    def opened(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if not path.is_relative_to(folder) or not set(mode) & set("wax"):
            return real(path, mode, *rest, **named)
        tried.append(path)
        file = Full(path, mode.replace("b", ""))
        file.number = number
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", opened)
        yield tried
