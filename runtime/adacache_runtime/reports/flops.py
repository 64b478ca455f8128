"""Floating-point operations of calls and generations, from the counts in a bundle's manifest.

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

UNITS = {"TFLOP": 10**12, "GFLOP": 10**9, "MFLOP": 10**6}


def flops(terms: Iterable[Term], sizes: Mapping[str, int]) -> int:
    """Return the sum of terms at these sizes of the axes."""
    return sum(term.flops * math.prod(sizes[axis] for axis in term.axes) for term in terms)


@dataclass(frozen=True)
class Work:
    """FLOPs of a generation's parts, for all guidance branches of all prompts.

    Attributes:
        text: FLOPs of the stages that run once a generation, those of all experts together.
        ends: FLOPs of the stages that are in no group and run in every call: mostly ``embed`` and ``final`` together.
        groups: FLOPs of each group, in a call that computes it.
        branches: number of guidance branches; each does an equal part of ``ends`` and ``groups``.
    """

    text: int
    ends: int
    groups: tuple[int, ...]
    branches: int = 1

    @property
    def full(self) -> int:
        """FLOPs of a call that computes every block."""
        return self.call((True,) * len(self.groups))

    @property
    def cached(self) -> int:
        """FLOPs of a call that reuses every group's residual."""
        return self.call((False,) * len(self.groups))

    def call(self, compute: tuple[bool, ...] | Rows, rebuilt: Sequence[bool] = ()) -> int:
        """Return the FLOPs of a call.

        Args:
            compute: for each group, or by branch and group, whether it is computed.
            rebuilt: for each branch, whether it does not run because its prediction is rebuilt; empty = all run.
        """
        rows = rows_of(compute) if by_branch(compute) else rows_of(compute) * self.branches
        running = self.branches - sum(rebuilt)
        done = sum(group for row in rows for group, here in zip(self.groups, row, strict=True) if here)
        return (self.ends * running + done) // self.branches

    def generation(self, calls: Iterable[tuple[bool, ...] | Rows]) -> int:
        """Return the FLOPs of a generation whose calls compute these groups, with the text."""
        return self.text + sum(map(self.call, calls))


def work(manifest: Manifest, sizes: Mapping[str, int], granularity: Granularity = "stack") -> Work | None:
    """Return the FLOPs of a generation's parts; None where the stages do not count their operations.

    Experts are transformers of one architecture: a call takes as many with each of them.

    Args:
        manifest: manifest of the bundle.
        sizes: sizes of the dynamic axes; ``batch`` counts the guidance branches of all samples.
        granularity: granularity of the groups.
    """
    if not any(stage.flops for stage in manifest.stages):
        return None

    def of(stages: Iterable[StageEntry]) -> int:
        return sum(flops(stage.flops, sizes) for stage in stages)

    groups = group_stages(manifest, granularity)
    text = [stage for stage in manifest.stages if stage.per_generation]
    grouped = [stage.graph.name for stages in (text, *groups) for stage in stages]
    of_call = [stage for stage in manifest.stages if stage.expert == 0]
    return Work(
        text=of(text),
        ends=of(stage for stage in of_call if stage.graph.name not in grouped),
        groups=tuple(map(of, groups)),
        branches=sizes.get("batch", 1) // sizes.get("samples", sizes.get("batch", 1)),
    )


def work_of_run(manifest: Manifest, trace: Trace) -> tuple[int, int] | None:
    """Return the FLOPs of a run, and of the same run with every call computed; None where nothing is counted.

    Raises:
        InputError: the trace has no calls or sizes, or is not one of this bundle.
    """
    if not trace.calls or not trace.sizes:
        raise InputError("the trace has no calls or no sizes; write one with adacache-run --trace")
    counts = {len(row) for record in trace.calls for row in record.rows}
    missing = {axis for stage in manifest.stages for term in stage.flops for axis in term.axes} - {*trace.sizes}
    batch, branches = trace.sizes.get("batch", 1), len(manifest.guidance.order)
    samples = trace.sizes.get("samples", batch)
    if batch % samples or batch // samples > branches:
        raise InputError(f"the trace has {batch} sequences for {samples} samples; give one of this bundle")
    if any(len(record.rows) not in (1, batch // samples) for record in trace.calls):
        raise InputError("a call of the trace has groups for other branches of guidance; give one of this bundle")
    if counts != {len(group_stages(manifest, trace.granularity))} or missing:
        raise InputError(
            f"the trace is of another bundle: it has {', '.join(map(str, sorted(counts)))} groups of blocks and the "
            f"axes {', '.join(trace.sizes)}; give one of this bundle"
        )
    parts = work(manifest, trace.sizes, trace.granularity)
    if parts is None:
        return None
    whole = parts.text + len(trace.calls) * parts.full
    return parts.text + sum(parts.call(record.compute, record.rebuilt) for record in trace.calls), whole


def in_unit(*counts: int) -> tuple[list[str], str]:
    """Return counts with two decimals or three digits, all in the unit that suits the largest, and that unit."""
    unit = next((name for name, size in UNITS.items() if max(counts) >= size), "MFLOP")
    return [_digits(count / UNITS[unit]) for count in counts], unit


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
