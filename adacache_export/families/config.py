"""Settle a model's configuration between its ``config.json`` and the shapes of its tensors."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from adacache_engines.errors import CheckpointError


def settle(
    defaults: Mapping[str, Any],
    given: Mapping[str, Any] | None,
    inferred: Mapping[str, Any],
    required: Mapping[str, tuple[Any, str]],
) -> dict[str, Any]:
    """Return the value of every field: from the shapes, else from ``config.json``, else the default.

    Args:
        defaults: default of every field: a positive number, a tuple of positive whole numbers, a boolean, or None for a
            positive whole number that may be missing. A value of ``given`` must have the default's type.
        given: content of ``config.json``, None without one; keys that are no fields are ignored.
        inferred: values of the fields that the shapes determine.
        required: key of ``given`` -> the one value that can be exported, and why no other; the key may be missing.

    Raises:
        CheckpointError: values are refused, of a wrong type, or contradicted by the shapes; it lists all of them.
    """
    given = given or {}
    problems = [
        f"{key} is {json.dumps(given[key])}: {reason}"
        for key, (value, reason) in required.items()
        if given.get(key) not in (None, value)
    ]
    settled = {**defaults, **inferred}
    for field, default in defaults.items():
        if field not in given:
            continue
        value, wanted = _read(given[field], default)
        if value is None:
            problems.append(f"{field} is {given[field]!r}, expected {wanted}")
        elif field in inferred and inferred[field] != value:
            problems.append(f"{field} is {given[field]!r} there, and {inferred[field]!r} by the shapes of the tensors")
        else:
            settled[field] = value
    if problems:
        raise CheckpointError(
            "config.json cannot be used with these weights:\n"
            + "".join(f"  {problem}\n" for problem in problems)
            + "Pass the config.json that belongs to the weights."
        )
    return settled


def _read(value: Any, default: Any) -> tuple[Any, str]:
    """Return a value in the default's type, or None where it has another type, and the default's type in words."""
    if isinstance(default, bool):
        return (value if isinstance(value, bool) else None), "true or false"
    if default is None or isinstance(default, int):
        return (value if _is_count(value) else None), "a positive whole number"
    if isinstance(default, float):
        return (float(value) if _is_positive(value) else None), "a positive number"
    fits = isinstance(value, list | tuple) and len(value) == len(default) and all(map(_is_count, value))
    return (tuple(value) if fits else None), f"{len(default)} positive whole numbers"


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_positive(value)


def count_blocks(names: Iterable[str], lists: Iterable[str]) -> int:
    """Return the number of blocks, from tensor names such as ``spatial_blocks.27.mlp.fc1.bias``.

    It is one more than the last index, so that a gap shows as missing tensors.

    Args:
        names: names of all tensors.
        lists: names of the lists of blocks, such as ``spatial_blocks``.
    """
    pattern = re.compile(rf"(?:{'|'.join(map(re.escape, lists))})\.(\d{{1,3}})\.")
    return max((int(match[1]) + 1 for name in names if (match := pattern.match(name))), default=0)
