"""Files of a user's, read whole, with a bound on their size: a file may be endless, or not what its name says."""

import json
from pathlib import Path
from typing import Any

from adacache_engines.errors import InputError

MAX_NBYTES = 2**28


def read_bytes(path: Path, what: str, most: int = MAX_NBYTES) -> bytes:
    """Return the content of a file.

    Args:
        path: the file; a pipe or a device is possible, too.
        what: how messages call it, such as ``trace``.
        most: largest size in bytes.

    Raises:
        InputError: the file cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except (OSError, ValueError) as error:  # the name may be none that a file can have
        raise InputError(f"{what} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > most:
        raise InputError(f"{what} {path} cannot be read: it has more than {most} bytes")
    return content


def parse_json(content: bytes) -> Any:
    """Parse JSON in UTF-8.

    Raises:
        ValueError: it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(content.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
