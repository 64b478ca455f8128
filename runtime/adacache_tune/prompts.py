"""Read files of prompts."""

from pathlib import Path

from adacache_engines.errors import InputError


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a file with one prompt a line.

    Empty lines and lines that begin with ``#`` are no prompts, and a repeated prompt counts once.

    Raises:
        InputError: the file cannot be read, or holds no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"prompts {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"prompts {path} cannot be read: it is no text in UTF-8") from error
    stripped = [line.strip() for line in lines]
    prompts = list(dict.fromkeys(line for line in stripped if line and not line.startswith("#")))
    if not prompts:
        raise InputError(f"prompts {path} holds none; write one prompt a line")
    return prompts
