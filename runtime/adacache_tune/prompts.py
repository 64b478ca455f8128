"""Read files of prompts."""

import re
from pathlib import Path

from adacache_engines.errors import InputError
from adacache_runtime.media.reading import read_bytes

MAX_NBYTES = 2**26
MAX_CHARACTERS = 20_000  # of a prompt; encoders read a few hundred tokens
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a file with one prompt a line.

    Empty lines and lines that begin with ``#`` are no prompts, and a repeated prompt counts once.

    Raises:
        InputError: the file cannot be read, holds no prompt, or a line is none that can be a prompt.
    """
    try:
        text = read_bytes(path, "prompts", MAX_NBYTES).decode("utf-8-sig")
    except ValueError as error:
        raise InputError(f"prompts {path} cannot be read: it is no text in UTF-8") from error
    lines = [line.strip() for line in re.split("\r\n|\r|\n", text)]
    for number, line in enumerate(lines, 1):
        if found := CONTROL.search(line):
            raise InputError(f"prompts {path}, line {number} has the control character {found[0]!r}; take it out")
        if len(line) > MAX_CHARACTERS:
            raise InputError(
                f"prompts {path}, line {number} has {len(line)} characters; expected a prompt a line, of at most "
                f"{MAX_CHARACTERS}"
            )
    prompts = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise InputError(f"prompts {path} holds none; write one prompt a line")
    return prompts
