"""Progress of a generation on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from adacache_runtime.trace import CallRecord

LINES = 10  # of a generation, where there is no terminal to draw a bar on


@contextmanager
def call_progress(calls: int, stream: TextIO | None = None) -> Iterator[Callable[[CallRecord], None]]:
    """Shows how far the denoising loop is: step, last decision, time left.

    A bar on a terminal; elsewhere about ten plain lines, without control codes.

    Args:
        calls: that the generation makes.
        stream: where to; standard error if None.

    Yields:
        A function to be called with each record as it comes.
    """
    stream = stream or sys.stderr
    records: list[CallRecord] = []
    if not draws(stream):

        def line(record: CallRecord) -> None:
            records.append(record)
            done = len(records)
            if done * LINES // calls > (done - 1) * LINES // calls:
                print(f"step {done}/{calls}, {_state(records, calls)}", file=stream, flush=True)

        yield line
        return
    columns = (
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with bars(stream, *columns) as progress:
        task = progress.add_task("", total=calls, state="")

        def advance(record: CallRecord) -> None:
            records.append(record)
            progress.update(task, advance=1, state=_state(records, calls))

        yield advance


def seconds_left(records: list[CallRecord], calls: int) -> float:
    """What the calls to come should take.

    From the mean computed and the mean reused call. The share of computed calls to come is the policy's last rate (one
    in ``rate``), or the share so far where there is none.

    Args:
        records: of the calls so far, at least one.
        calls: of the whole generation.
    """
    computed = [record.wall_ms for record in records if record.computed]
    reused = [record.wall_ms for record in records if not record.computed]
    rates = [record.observation.rate for record in records if record.observation.rate]
    share = 1 / rates[-1] if rates else len(computed) / len(records)
    computed_ms, reused_ms = fmean(computed or reused), fmean(reused or computed)
    return (calls - len(records)) * (share * computed_ms + (1 - share) * reused_ms) / 1e3


def duration(seconds: float) -> str:
    """A length of time for people: ``0.4 s``, ``12 s``, ``3:05 min``, ``1:02:10 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"


def draws(stream: TextIO) -> bool:
    """Whether a bar can be drawn there: a terminal, and not a dumb one."""
    return stream.isatty() and Console(file=stream).is_interactive  # rich alone lets the environment force a terminal


def bars(stream: TextIO, *columns: ProgressColumn) -> Progress:
    """Rich bars on a stream that :func:`draws`; standard output stays as it is."""
    return Progress(*columns, console=Console(file=stream), refresh_per_second=4, redirect_stdout=False)


def _state(records: list[CallRecord], calls: int) -> str:
    decision = "computed" if records[-1].computed else "reused"
    left = "" if len(records) == calls else f", about {duration(seconds_left(records, calls))} left"
    return decision + left
