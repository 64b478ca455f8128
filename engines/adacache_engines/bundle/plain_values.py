"""The bounds that hold for every value in a manifest, whatever its field means.

A manifest comes from whoever made the bundle. Its texts are shown in terminals and logs and its numbers are reckoned
with, so that texts are single lines without control characters, and numbers are finite.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

from adacache_engines.printable import is_plain, printable

MOST_NBYTES = 16 << 20  # of a manifest; those of large models have less than a tenth of it
DEEPEST = 24  # lists and objects in one another; a graph's axes are nine deep
LONGEST_TEXT = 4000  # characters; notes are the longest
LARGEST_INT = (1 << 63) - 1


def read_json(text: str) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: the text is no JSON, or holds NaN, an infinite number or one too long to be read.
        RecursionError: it is nested too deeply to be read.
    """
    return json.loads(text, parse_constant=_refused)


def problem_in(content: Any, finite: bool = True) -> str | None:
    """Return what is wrong with a value that was read from JSON, beginning with its place; None = nothing is.

    Args:
        content: the value.
        finite: whether NaN and infinite numbers are wrong.
    """
    return next((f"{_place(place)}: {problem}" for place, problem in _problems(content, (), finite)), None)


def _problems(value: Any, place: tuple[object, ...], finite: bool) -> Iterator[tuple[tuple[object, ...], str]]:
    if len(place) > DEEPEST:
        yield place[:8], f"is nested more than {DEEPEST} deep; expected less"
    elif isinstance(value, str):
        yield from ((place, problem) for problem in _of_text(value))
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int) and abs(value) > LARGEST_INT:
        yield place, f"is a number of {len(str(abs(value)))} digits; expected one of at most 63 bits"
    elif isinstance(value, float) and finite and not math.isfinite(value):
        yield place, f"is {value}; expected a finite number"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (((*place, key), f"this name {problem}") for problem in _of_text(str(key)))
            yield from _problems(inner, (*place, key), finite)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _problems(inner, (*place, index), finite)


def _of_text(text: str) -> Iterator[str]:
    if len(text) > LONGEST_TEXT:
        yield f"has {len(text)} characters; expected at most {LONGEST_TEXT}"
    elif not is_plain(text):
        yield f"holds control characters ({printable(text, 60)}); expected one line of plain text"


def _place(place: tuple[object, ...]) -> str:
    return printable(".".join(printable(part, 60) for part in place)) or "the manifest"


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number that JSON has")
