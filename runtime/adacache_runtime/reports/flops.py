"""How many floating-point operations calls and generations take, from the counts in a bundle's manifest.

Two for each product of two numbers; ``adacache_export.costs`` says what counts. The text encoder is no stage of the
model and left out, and arithmetic graphs such as ``add`` count nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from adacache_engines.bundle.manifest import Manifest, StageEntry, Term
from adacache_engines.errors import InputError
from adacache_runtime.caching.groups import group_stages
from adacache_runtime.caching.policy import Granularity, Rows, by_branch, rows_of
from adacache_runtime.trace import Trace

OF_OLD_TRACES: tuple[Granularity, ...] = ("stack", "block", "module")  # which do not say
UNITS = {"TFLOP": 10**12, "GFLOP": 10**9, "MFLOP": 10**6}


def flops(terms: Iterable[Term], sizes: Mapping[str, int]) -> int:
    """The sum of terms at these sizes of the axes."""
    return sum(term.flops * math.prod(sizes[axis] for axis in term.axes) for term in terms)


@dataclass(frozen=True)
class Work:
    """FLOPs of a generation's parts, for all guidance branches of all prompts.

    Attributes:
        text: the ``text`` stage, once a generation.
        ends: the stages that are in no group and run in every call: mostly ``embed`` and ``final`` together.
        groups: the stages of each group, in calls that compute it.
        branches: number of guidance branches; each does an equal part of ``ends`` and ``groups``.
    """

    text: int
    ends: int
    groups: tuple[int, ...]
    branches: int = 1

    @property
    def full(self) -> int:
        """A call that computes every block."""
        return self.call((True,) * len(self.groups))

    @property
    def cached(self) -> int:
        """A call that reuses every group's residual."""
        return self.call((False,) * len(self.groups))

    def call(self, compute: tuple[bool, ...] | Rows, rebuilt: Sequence[bool] = ()) -> int:
        """A call that computes these groups, or these of each branch, and runs the branches that are not rebuilt."""
        rows = rows_of(compute) if by_branch(compute) else rows_of(compute) * self.branches
        running = self.branches - sum(rebuilt)
        done = sum(group for row in rows for group, here in zip(self.groups, row, strict=True) if here)
        return (self.ends * running + done) // self.branches

    def generation(self, calls: Iterable[tuple[bool, ...] | Rows]) -> int:
        """All calls, each with the groups that it computes, and the text."""
        return self.text + sum(map(self.call, calls))


def work(manifest: Manifest, sizes: Mapping[str, int], granularity: Granularity = "stack") -> Work | None:
    """
    Args:
        manifest: of the bundle.
        sizes: of the dynamic axes; ``batch`` counts the guidance branches of all samples.
        granularity: of the groups.

    Returns:
        None where the stages do not count their operations.
    """
    if not any(stage.flops for stage in manifest.stages):
        return None

    def of(stages: Iterable[StageEntry]) -> int:
        return sum(flops(stage.flops, sizes) for stage in stages)

    groups = group_stages(manifest, granularity)
    text = [stage for stage in manifest.stages if stage.per_generation]
    grouped = [stage.graph.name for stages in (text, *groups) for stage in stages]
    return Work(
        text=of(text),
        ends=of(stage for stage in manifest.stages if stage.graph.name not in grouped),
        groups=tuple(map(of, groups)),
        branches=sizes.get("batch", 1) // sizes.get("samples", sizes.get("batch", 1)),
    )


def work_of_run(manifest: Manifest, trace: Trace) -> tuple[int, int] | None:
    """FLOPs of a run, and of the same run with every call computed; None as of :func:`work`.

    Raises:
        InputError: the trace has no calls or sizes, or is not one of this bundle.
    """
    if not trace.calls or not trace.sizes:
        raise InputError("the trace has no calls or no sizes; write one with this version's adacache-run --trace")
    counts = {len(row) for record in trace.calls for row in record.rows}
    choices = (trace.granularity,) if trace.granularity else OF_OLD_TRACES
    fitting = [choice for choice in choices if {len(group_stages(manifest, choice))} == counts]
    missing = {axis for stage in manifest.stages for term in stage.flops for axis in term.axes} - {*trace.sizes}
    if not fitting or missing:
        raise InputError(
            f"the trace is of another bundle: it has {', '.join(map(str, sorted(counts)))} groups of blocks and the "
            f"axes {', '.join(trace.sizes)}; give one of this bundle"
        )
    parts = work(manifest, trace.sizes, fitting[0])
    if parts is None:
        return None
    whole = parts.text + len(trace.calls) * parts.full
    return parts.text + sum(parts.call(record.compute, record.rebuilt) for record in trace.calls), whole


def in_unit(*counts: int) -> tuple[list[str], str]:
    """Counts with two decimals or three digits, all in the unit that suits the largest, and that unit."""
    unit = next((name for name, size in UNITS.items() if max(counts) >= size), "MFLOP")
    return [_digits(count / UNITS[unit]) for count in counts], unit


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
