"""The file of finished runs, a line for each prompt and seed, from which a stopped comparison goes on.

The first line of the file says what was compared and how; the others are as :class:`Finished`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from adacache_engines.errors import InputError
from adacache_runtime.media.files import writing
from adacache_runtime.media.reading import parse_json, read_bytes
from adacache_tune.comparison.measure import FULL, Compared, Row

Header = Mapping[str, Any]
MAX_COUNT = 10**30  # of operations; no machine counts so far


@dataclass(frozen=True)
class Finished:
    """The numbers of one prompt and seed; ``video`` is relative to the file's folder, None without one."""

    prompt: str
    seed: int
    rows: tuple[Row, ...]
    video: str | None = None


_LINE = TypeAdapter(Finished)


def resume(path: Path, header: Header) -> list[Finished]:
    """Return the runs in a file; begin a file that does not exist.

    A last line that was not written to its end is dropped, from the file, too.

    Args:
        path: the file; its folder exists.
        header: description of the comparison, as JSON.

    Raises:
        InputError: the file is of another comparison (the message says what differs), is no such file, or cannot be
            read or written.
    """
    if not path.exists():
        _begin(path, header)
        return []
    if not path.is_file():
        raise InputError(f"{path} is no file, and a comparison goes on from one; give another -o")
    content = read_bytes(path, "runs")
    whole, newline, torn = content.rpartition(b"\n")
    if not newline:  # stopped before there was anything
        _begin(path, header)
        return []
    first, *lines = whole.split(b"\n")
    _check(path, _parsed(path, 1, first), json.loads(json.dumps(header)))
    labels = [FULL, *header["policies"]]
    finished = [_finished(path, number, line, labels) for number, line in enumerate(lines, 2)]
    if torn:
        with writing(path) as file:
            file.write(whole + newline)
    return finished


def append(path: Path, compared: Compared, video: str | None) -> Finished:
    """Add a line, at once.

    Raises:
        InputError: the file cannot be written.
    """
    finished = Finished(compared.prompt, compared.seed, compared.rows, video)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(finished), ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    return finished


def latest(finished: Sequence[Finished]) -> dict[tuple[str, int], Finished]:
    """Return runs by prompt and seed; of runs that were measured again, the last one counts."""
    return {(one.prompt, one.seed): one for one in finished}


def _begin(path: Path, header: Header) -> None:
    with writing(path) as file:
        file.write(json.dumps(header, ensure_ascii=False).encode() + b"\n")


def _check(path: Path, there: object, wanted: Header) -> None:
    if not isinstance(there, dict):
        raise InputError(f"{path} is no comparison; give another -o")
    before, now = _flat(there), _flat(wanted)
    differences = [
        f"{key} was {_short(before.get(key))}, now {_short(now.get(key))}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]
    if differences:
        raise InputError(
            f"{path} holds another comparison ({'; '.join(differences)}); give --force to begin anew, or another -o"
        )


def _finished(path: Path, number: int, line: bytes, labels: Sequence[str]) -> Finished:
    """Return the run of a line, whose rows must be those of these policies, in any order."""
    try:
        finished = _LINE.validate_json(line)
        problem = _impossible(finished, labels)
    except ValidationError as error:
        wrong = error.errors(include_input=False)[0]
        problem = f"{'.'.join(str(part)[:80] for part in wrong['loc'])}: {wrong['msg']}"
    if problem:
        raise InputError(
            f"{path}, line {number} is none of a comparison ({problem}); give --force to begin anew, or another -o"
        )
    return finished


def _impossible(finished: Finished, labels: Sequence[str]) -> str | None:
    """Return what no comparison of these policies can have measured; None where there is nothing of the kind."""
    if sorted(row.policy for row in finished.rows) != sorted(labels):
        return "its rows are not those of the compared policies"
    for row in finished.rows:
        numbers = [value for value in (*asdict(row).values(), *row.adherence.values()) if isinstance(value, float)]
        if not all(map(math.isfinite, numbers)):
            return "a number is not finite"
        if not (0 <= row.computed <= row.calls and row.calls and row.wall_ms > 0 and row.time_ratio > 0):
            return "its calls or times are not possible"
        if not all(0 <= count < MAX_COUNT for count in (row.calls, row.passes, row.flops or 0)):
            return "a count is not possible"
    return None


def _parsed(path: Path, number: int, line: bytes) -> object:
    try:
        parsed: object = parse_json(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number} is not JSON: {error}; give --force or another -o") from error
    return parsed


def _flat(content: Header) -> dict[str, object]:
    """Return a flat object; entries of inner objects have names such as ``policies.fast``."""
    flat: dict[str, object] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def _short(value: object) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
