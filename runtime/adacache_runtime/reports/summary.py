"""A summary of a trace: which calls were computed, and what calls cost, in numbers that were measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.table import Table

from adacache_engines.bundle.manifest import Manifest
from adacache_engines.errors import InputError
from adacache_runtime.reports.flops import in_unit, work_of_run
from adacache_runtime.trace import CallRecord, Trace


@dataclass(frozen=True)
class Timing:
    """Wall-clock times of a generation's calls.

    Attributes:
        wall_ms: time of all calls together.
        engine_ms: part of it that was spent inside engines.
        computed_ms: mean time of the calls in which a block ran in full; None without any.
        reused_ms: mean time of the other calls; None without any.
        full_ms: mean time of the calls in which every block ran in full; None without any.
        speed_up: calls * full_ms / wall_ms, over computing every call, from this run's own calls; None if unknown.
    """

    wall_ms: float
    engine_ms: float
    computed_ms: float | None
    reused_ms: float | None
    full_ms: float | None
    speed_up: float | None

    @property
    def overhead(self) -> float:
        """Share of the wall-clock time outside engines."""
        return 1 - self.engine_ms / self.wall_ms if self.wall_ms else 0.0


def timing(trace: Trace) -> Timing:
    """Add up a trace's times."""
    wall_ms = trace.wall_ms()
    full_ms = _mean_ms([record for record in trace.calls if record.in_full])
    return Timing(
        wall_ms=wall_ms,
        engine_ms=trace.engine_ms(),
        computed_ms=_mean_ms([record for record in trace.calls if record.computed]),
        reused_ms=_mean_ms([record for record in trace.calls if not record.computed]),
        full_ms=full_ms,
        speed_up=len(trace.calls) * full_ms / wall_ms if full_ms and wall_ms else None,
    )


def summary(trace: Trace, manifest: Manifest | None = None) -> Table:
    """Return a table for a terminal: which calls were computed, and what the calls cost.

    Args:
        trace: trace of a generation.
        manifest: manifest of the bundle that ran; without it, no operations are shown.

    Raises:
        InputError: the trace has no calls.
    """
    if not trace.calls:
        raise InputError("the trace has no calls: there is nothing to report")
    calls, computed, times = len(trace.calls), trace.computed(), timing(trace)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("computed calls", f"{len(computed)} of {calls} ({len(computed) / calls:.0%}): {ranges(computed)}")
    in_full = [record.call for record in trace.calls if record.in_full]
    if in_full != computed:
        table.add_row("computed in full", f"{len(in_full)} of {calls}: {ranges(in_full)}")
    if times.computed_ms is not None:
        table.add_row("a computed call", f"{milliseconds(times.computed_ms)} on average")
    if times.computed_ms and times.reused_ms is not None:
        share = times.reused_ms / times.computed_ms
        table.add_row("a reused call", f"{milliseconds(times.reused_ms)} on average, {share:.1%} of a computed one")
    table.add_row("all calls", f"{milliseconds(times.wall_ms)}, of which {milliseconds(times.engine_ms)} in engines")
    if switches := trace.switches():
        calls_after = f"before call{'s' * (len(switches) > 1)} {', '.join(map(str, switches))}"
        table.add_row("switches of experts", f"{milliseconds(sum(switches.values()))} beside these, {calls_after}")
    table.add_row("loop overhead", f"{times.overhead:.1%} of the wall-clock time")
    if times.speed_up is not None:
        table.add_row("speed-up", f"{times.speed_up:.2f} times over computing every call, from this run's own calls")
    counted = work_of_run(manifest, trace) if manifest else None
    if counted:
        run, whole = counted
        (done, possible), unit = in_unit(run, whole)
        table.add_row("computation", f"{done} of {possible} {unit} ({run / whole:.0%})")
    return table


def ranges(numbers: Sequence[int]) -> str:
    """Return rising whole numbers in short: ``1-5, 8, 11``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) or "none"


def milliseconds(value: float) -> str:
    """Return a time with two or three significant digits, in the unit that suits it."""
    if value >= 9_999.5:
        return f"{value / 1e3:.1f} s"
    if value >= 999.5:
        return f"{value / 1e3:.2f} s"
    if value < 0.0995:
        return f"{value * 1e3:.0f} µs"
    return f"{value:.0f} ms" if value >= 99.95 else f"{value:.1f} ms" if value >= 9.995 else f"{value:.2f} ms"


def _mean_ms(records: Sequence[CallRecord]) -> float | None:
    return fmean(record.wall_ms for record in records) if records else None
