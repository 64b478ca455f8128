"""The phases of a check as values, the time that each may take, and their overview."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Phase:
    """A part of a check, which runs in a process of its own.

    Attributes:
        name: name of the phase and of its files.
        module: module whose ``run(arguments, report)`` does the work; see :class:`tools.gpu.running.results.Report`.
        cap_s: seconds after which the phase is ended.
        least_s: seconds without which the phase is not worth starting.
        shows: what the phase's results show, for a reader of the plan.
        arguments: arguments of ``run``, as JSON can hold them.
        after: names of phases that must have ended well before.
        backends: names of backends that must be usable; see :mod:`tools.gpu.libraries`.
        leaves: path of what the phase leaves for later ones, without which it is not done; empty = nothing.
    """

    name: str
    module: str
    cap_s: float
    least_s: float
    shows: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    leaves: str = ""

    @property
    def needs(self) -> str:
        """Names of the phases and backends without which this phase is skipped."""
        return ", ".join((*self.after, *self.backends)) or "nothing"


def cap_within(phase: Phase, later: Sequence[Phase], left_s: float) -> float | None:
    """Return the seconds that a phase may take of a budget, or None where they are too few to start it.

    A phase that takes all of its cap leaves the next ones the least that they need, as far as that can be had; the last
    phases are given up first.

    Args:
        phase: the phase that is next.
        later: the phases after it.
        left_s: seconds that are left of the budget.
    """
    if left_s < phase.least_s:
        return None
    reserved_s = 0.0
    for other in later:
        if phase.least_s + reserved_s + other.least_s > left_s:
            break
        reserved_s += other.least_s
    return min(phase.cap_s, left_s - reserved_s)


def overview(phases: Sequence[Phase]) -> str:
    """Return the phases as a table for people: order, name, cap and least time, what each needs and shows."""
    columns = ("", "phase", "cap", "least", "needs", "shows")
    rows = [
        (f"{number}", phase.name, f"{phase.cap_s:.0f} s", f"{phase.least_s:.0f} s", phase.needs, phase.shows)
        for number, phase in enumerate(phases, 1)
    ]
    widths = [max(len(row[column]) for row in (columns, *rows)) for column in range(len(columns))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (columns, *rows)]
    total_s = sum(phase.cap_s for phase in phases)
    return f"{table(padded[0], padded[1:])}\n\nAll caps together: {total_s:.0f} s.\n"


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    lines.insert(1, "|" + "---|" * len(columns))
    return "\n".join(lines)
