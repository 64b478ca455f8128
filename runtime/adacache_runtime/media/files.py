"""Result files, written whole or not at all."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from adacache_engines.errors import InputError


def check_folder(path: Path) -> None:
    """Check that a file can be put at ``path``, before the work that fills it.

    Raises:
        InputError: its folder is missing, or it is a folder itself.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise InputError(f"{path} cannot be written: it is a folder; name a file")


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes its name, and the place of an older one, when the block ends without an error.

    Raises:
        InputError: the folder is missing, not writable or full; nothing is left there, and an older file stays.
    """
    check_folder(path)
    part = path.with_name(f".{secrets.token_hex(6)}.part")  # the same folder, so that the rename is one step
    try:
        with part.open("xb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
