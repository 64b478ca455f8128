"""Traces as files."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.errors import InputError
from adacache_runtime.trace import CallRecord, Trace, read_trace

SEEN = {"distance": 0.1, "motion": 0.2, "metric": 0.3, "rate": 4, "motion_score": 0.5, "cosine": 0.9}
TRACE = Trace(
    (
        CallRecord(1, 1000.0, (True, True), {}, {"embed": 1.0, "blocks": 3.5}, 5.0),
        CallRecord(2, 900.5, (True, False), SEEN, {"embed": 1.0, "blocks": 2.5}, 4.0),
        CallRecord(3, 1.0, (False, False), {}, {}, 0.5, switch_ms=7.5),
    ),
    {"batch": 2, "tokens": 36},
    contexts=12,
)


def write(folder: Path, text: str) -> Path:
    path = folder / "trace.json"
    path.write_text(text)
    return path


def test_a_trace_comes_back_from_its_file(tmp_path: Path) -> None:
    assert read_trace(write(tmp_path, TRACE.to_json())) == TRACE


def test_what_was_not_finite_comes_back_as_nothing(tmp_path: Path) -> None:
    call = replace(TRACE.calls[1], observation={"distance": 0.1, "motion": math.nan, "metric": math.inf, "rate": 1})
    read = read_trace(write(tmp_path, replace(TRACE, calls=(call,)).to_json()))
    assert read.calls[0].observation == {"distance": 0.1, "rate": 1}


DAMAGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda content: [content],
    "no calls": lambda content: {**content, "calls": None},
    "no sizes": lambda content: {"calls": content["calls"], "granularity": content["granularity"]},
    "no granularity": lambda content: {"calls": content["calls"], "sizes": content["sizes"]},
    "calls of nothing": lambda content: {**content, "calls": [None]},
    "sizes of nothing": lambda content: {**content, "sizes": None},
    "a size in words": lambda content: {**content, "sizes": {"batch": "two"}},
    "no groups": lambda content: {**content, "calls": [{"call": 1}]},
    "no time": lambda content: {**content, "calls": [{**content["calls"][0], "wall_ms": None}]},
    "a group that is no choice": lambda content: {**content, "calls": [{**content["calls"][0], "groups": [7]}]},
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_no_trace(case: str, tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(DAMAGED[case](json.loads(TRACE.to_json()))))
    with pytest.raises(InputError, match=r"trace\.json is not one of adacache-run --trace"):
        read_trace(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_bytes(content)
    with pytest.raises(InputError, match="is not one of"):
        read_trace(tmp_path / "trace.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path / "missing.json")
