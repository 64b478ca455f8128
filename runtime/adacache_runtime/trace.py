"""The trace of a generation: what it did, call by call. Reports, plots and replays are views of it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from adacache_engines.errors import InputError
from adacache_runtime.caching.policy import Granularity, Observation, Rows, by_branch, rows_of
from adacache_runtime.media.reading import parse_json, read_bytes

# of a call's entry in JSON
OWN_KEYS = ("call", "timestep", "computed", "groups", "rebuilt", "engine_ms", "wall_ms", "switch_ms")
MAX_SIZE = 2**31 - 1  # of an axis
MAX_NAME = 100  # characters of a name in messages


@dataclass(frozen=True)
class CallRecord:
    """One call of the denoiser.

    Attributes:
        call: number of the call, from 1.
        timestep: timestep of the first sample, 1000 = pure noise.
        compute: for each group, in the order of execution, whether it was computed; or a row of these for each branch.
        observation: what the policy made of the call's measurements; empty where it measured nothing.
        engine_ms: time inside engines, by part of the call: ``embed``, ``blocks``, ``measure``, and ``final``, which is
            all from the final stage to the next latents.
        wall_ms: time from when the call began, or was asked for, to its end, without ``switch_ms``.
        rebuilt: for each branch, whether it did not run, its prediction being rebuilt; empty = all ran.
        switch_ms: time before the call in which the other expert's engines were closed and those of the call's expert
            were opened; None = they were loaded.
    """

    call: int
    timestep: float
    compute: tuple[bool, ...] | Rows
    observation: Observation
    engine_ms: Mapping[str, float]
    wall_ms: float
    rebuilt: tuple[bool, ...] = ()
    switch_ms: float | None = None

    @property
    def computed(self) -> bool:
        """Whether any block ran in full."""
        return any(any(row) for row in self.rows)

    @property
    def in_full(self) -> bool:
        """Whether every block ran in full, for every branch."""
        return all(all(row) for row in self.rows)

    @property
    def rows(self) -> Rows:
        """The groups by branch; a single row where all branches were treated alike."""
        return rows_of(self.compute)


@dataclass(frozen=True)
class Trace:
    """All calls of one generation.

    Attributes:
        calls: the calls in order.
        sizes: sizes of the dynamic axes.
        granularity: granularity of the groups.
        contexts: number of execution contexts that the backend had when the calls were over, those of generations
            beside it included; None = the backend has none.
    """

    calls: tuple[CallRecord, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)
    granularity: Granularity = "stack"
    contexts: int | None = None

    def computed(self) -> list[int]:
        """Return the calls, from 1, in which a block ran in full."""
        return [record.call for record in self.calls if record.computed]

    def wall_ms(self) -> float:
        return sum(record.wall_ms for record in self.calls)

    def engine_ms(self) -> float:
        return sum(sum(record.engine_ms.values()) for record in self.calls)

    def switches(self) -> dict[int, float]:
        """Return the milliseconds of each switch to another expert's engines, by the call that came next, from 1."""
        return {record.call: record.switch_ms for record in self.calls if record.switch_ms is not None}

    def to_json(self) -> str:
        """Return an object with ``sizes``, ``granularity`` and ``calls``; a call has the numbers that were observed.

        It has ``contexts``, too, where the backend has execution contexts.
        """
        contexts = {} if self.contexts is None else {"contexts": self.contexts}
        calls = [entry(record) for record in self.calls]
        content = {"sizes": dict(self.sizes), "granularity": self.granularity, **contexts, "calls": calls}
        return json.dumps(content, indent=1)


def lanes(trace: Trace) -> list[tuple[bool, ...]]:
    """Return for each call whether each lane of a picture of the schedule was computed.

    A lane is a group, or a branch's group where a call treated its branches differently; groups that are always alike
    share one.
    """
    branches = max(len(record.rows) for record in trace.calls)
    rows = [record.rows if len(record.rows) == branches else record.rows * branches for record in trace.calls]
    if all(len({*row}) == 1 for call in rows for row in call):
        return [tuple(row[0] for row in call) for call in rows]
    return [tuple(group for row in call for group in row) for call in rows]


def read_trace(path: Path) -> Trace:
    """Read a trace that :meth:`Trace.to_json` wrote; numbers that were not finite are left out.

    Raises:
        InputError: the file cannot be read, or is no trace.
    """
    try:
        content = parse_json(read_bytes(path, "trace"))
        calls = [
            {
                **{key: call[key] for key in OWN_KEYS if key in call},
                "compute": call["groups"],
                "rebuilt": call.get("rebuilt", ()),
                "observation": {key: call[key] for key in call if key not in OWN_KEYS and call[key] is not None},
            }
            for call in content["calls"]
        ]
        rest = {key: content[key] for key in ("sizes", "granularity")}
        trace = TypeAdapter(Trace).validate_python({"calls": calls, **rest, "contexts": content.get("contexts")})
    except ValidationError as error:
        wrong = error.errors(include_input=False)[0]
        where = ".".join(str(part)[:MAX_NAME] for part in wrong["loc"])
        raise InputError(f"trace {path} is not one of adacache-run --trace: {where}: {wrong['msg']}") from error
    except KeyError as error:
        raise InputError(f"trace {path} is not one of adacache-run --trace: it has no {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"trace {path} is not one of adacache-run --trace: {error}") from error
    if problem := _impossible(trace):
        raise InputError(f"trace {path} is not one of adacache-run --trace: {problem}")
    return trace


def _impossible(trace: Trace) -> str | None:
    """Return what no generation can have recorded; None where there is nothing of the kind."""
    for name, size in trace.sizes.items():
        if not 1 <= size <= MAX_SIZE:
            return f"the size of axis {name[:MAX_NAME]} is not between 1 and {MAX_SIZE}"
    for number, record in enumerate(trace.calls, 1):
        numbers = (record.timestep, record.wall_ms, record.switch_ms or 0, *record.engine_ms.values())
        if not all(map(math.isfinite, (*numbers, *record.observation.values()))):
            return f"call {number} has a number that is not finite"
    return None


def entry(record: CallRecord) -> dict[str, Any]:
    """Return a call's entry in :meth:`Trace.to_json`."""
    # JSON has no NaN: a single frame has no motion
    numbers = {
        key: value if math.isfinite(value) else None for key, value in record.observation.items() if key not in OWN_KEYS
    }
    return {
        "call": record.call,
        "timestep": record.timestep,
        "computed": record.computed,
        "groups": [list(row) for row in record.rows] if by_branch(record.compute) else list(record.compute),
        **({"rebuilt": list(record.rebuilt)} if record.rebuilt else {}),
        **numbers,
        "engine_ms": dict(record.engine_ms),
        "wall_ms": record.wall_ms,
        **({"switch_ms": record.switch_ms} if record.switch_ms is not None else {}),
    }
