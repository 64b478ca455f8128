"""Progress of a generation on standard error."""

import sys
import time
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
    """Show how far the denoising loop is: step, last decision, time left.

    A bar on a terminal; elsewhere about ten plain lines, without control codes.

    Args:
        calls: number of calls that the generation makes.
        stream: stream to write to; None = standard error.

    Yields:
        A function to be called with each record as it comes.
    """
    records: list[CallRecord] = []
    with _progress("step", calls, stream or sys.stderr) as advance:

        def called(record: CallRecord) -> None:
            records.append(record)
            advance(_state(records, calls))

        yield called


@contextmanager
def frame_progress(frames: int, stream: TextIO | None = None) -> Iterator[Callable[[], None]]:
    """Show how many frames are decoded, as :func:`call_progress` shows steps.

    Args:
        frames: number of frames of all videos.
        stream: stream to write to; None = standard error.

    Yields:
        A function to be called after each frame.
    """
    with _progress("decoded frame", frames, stream or sys.stderr) as advance:
        yield lambda: advance("")


@contextmanager
def even_progress(unit: str, total: int, stream: TextIO | None = None) -> Iterator[Callable[[], None]]:
    """Show how many of many equal pieces of work are done, and the time left, as :func:`call_progress` shows steps.

    Args:
        unit: name of a piece, such as ``call``.
        total: number of pieces.
        stream: stream to write to; None = standard error.

    Yields:
        A function to be called after each.
    """
    begun, done = time.perf_counter(), 0
    with _progress(unit, total, stream or sys.stderr) as advance:

        def one() -> None:
            nonlocal done
            done += 1
            left = (total - done) * (time.perf_counter() - begun) / done
            advance(f"about {duration(left)} left" if done < total else "")

        yield one


def seconds_left(records: list[CallRecord], calls: int) -> float:
    """Return the seconds that the remaining calls should take.

    They follow from the mean computed and the mean reused call. The share of computed calls to come is the policy's
    last rate (one in ``rate``), or the share so far where there is none.

    Args:
        records: records of the calls so far, at least one.
        calls: number of calls of the whole generation.
    """
    computed = [record.wall_ms for record in records if record.computed]
    reused = [record.wall_ms for record in records if not record.computed]
    rates = [rate for record in records if (rate := record.observation.get("rate"))]
    share = 1 / rates[-1] if rates else len(computed) / len(records)
    computed_ms, reused_ms = fmean(computed or reused), fmean(reused or computed)
    return (calls - len(records)) * (share * computed_ms + (1 - share) * reused_ms) / 1e3


def duration(seconds: float) -> str:
    """Return a length of time for people: ``0.4 s``, ``12 s``, ``3:05 min``, ``1:02:10 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"


def draws(stream: TextIO) -> bool:
    """Return whether a bar can be drawn on a stream: on a terminal, and not a dumb one."""
    return stream.isatty() and Console(file=stream).is_interactive  # rich alone lets the environment force a terminal


def bars(stream: TextIO, *columns: ProgressColumn) -> Progress:
    """Return Rich bars on a stream that :func:`draws`; standard output stays as it is."""
    return Progress(*columns, console=Console(file=stream), refresh_per_second=4, redirect_stdout=False)


@contextmanager
def _progress(unit: str, total: int, stream: TextIO) -> Iterator[Callable[[str], None]]:
    """Yield a function that counts one unit and takes the text beside the count."""
    if not draws(stream):
        counted = 0

        def line(state: str) -> None:
            nonlocal counted
            counted += 1
            if counted * LINES // total > (counted - 1) * LINES // total:
                text = f"{unit} {counted}/{total}"
                print(f"{text}, {state}" if state else text, file=stream, flush=True)

        yield line
        return
    columns = (
        TextColumn(unit + " {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        TimeElapsedColumn(),
    )
    with bars(stream, *columns) as progress:
        task = progress.add_task("", total=total, state="")
        yield lambda state: progress.update(task, advance=1, state=state)


def _state(records: list[CallRecord], calls: int) -> str:
    decision = "computed" if records[-1].computed else "reused"
    left = "" if len(records) == calls else f", about {duration(seconds_left(records, calls))} left"
    return decision + left
