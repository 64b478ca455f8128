"""Progress of the jobs of ``adacache-export``, on standard error."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from adacache_export.phases import Progress
from adacache_runtime.commands.progress import bars, draws, duration

if TYPE_CHECKING:
    from typing_extensions import Self

BYTES = 100_000  # a phase of more units than this counts bytes; no model has that many stages


class PhaseProgress(Progress):
    """A bar for each phase on a terminal; elsewhere a plain line when a phase is over.

    A context manager. A phase ends where the next one begins, or the block.

    Args:
        stream: file to write to; None = standard error.
        check: function that is called at every step, and may raise to end the work.
    """

    def __init__(self, stream: TextIO | None = None, check: Callable[[], None] = lambda: None) -> None:
        self._check = check
        self._stream = stream or sys.stderr
        self._bars: Bars | None = None
        if draws(self._stream):
            name = TextColumn("{task.description}", markup=False)
            self._bars = bars(self._stream, name, BarColumn(), _Amount(), TimeElapsedColumn())
        self._phase: tuple[str, float, TaskID | None] | None = None

    def __enter__(self) -> "Self":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(finished=error is None)
        if self._bars:
            self._bars.stop()

    def phase(self, name: str, total: int) -> Callable[[int], None]:
        """End the current phase and begin one of ``total`` bytes or items; return the function that counts them."""
        self._end(finished=True)
        self._check()
        task = self._bars.add_task(name, total=max(total, 1)) if self._bars else None
        self._phase = (name, time.perf_counter(), task)

        def step(units: int) -> None:
            self._check()
            if self._bars and task is not None:
                self._bars.advance(task, units)

        return step

    def note(self, sentence: str) -> None:
        """Print a sentence between the phases, above the bars."""
        if self._bars:
            self._bars.console.print(sentence, markup=False, highlight=False)
        else:
            print(sentence, file=self._stream, flush=True)

    def _end(self, finished: bool) -> None:
        if self._phase is None:
            return
        name, began, task = self._phase
        self._phase = None
        if self._bars and task is not None:
            self._bars.stop_task(task)
            if finished:  # totals are estimates: a finished phase is drawn as complete
                total = next(one.total for one in self._bars.tasks if one.id == task)
                self._bars.update(task, completed=total)
        else:
            verdict = "" if finished else "stopped after "
            print(f"{name}: {verdict}{duration(time.perf_counter() - began)}", file=self._stream, flush=True)


class _Amount(ProgressColumn):
    """A column with the amount that is done and the total, in bytes or in items."""

    def render(self, task: Task) -> Text:
        total = task.total or 0
        done = min(task.completed, total)
        if total < BYTES:
            return Text(f"{done:.0f}/{total:.0f}")
        unit, size = ("GB", 1e9) if total >= 1e9 else ("MB", 1e6)
        return Text(f"{done / size:.1f}/{total / size:.1f} {unit}")
