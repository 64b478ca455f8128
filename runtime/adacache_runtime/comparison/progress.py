"""Progress of a comparison on standard error."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from adacache_runtime.progress import LINES, bars, draws, duration


@contextmanager
def comparison_progress(calls: int, stream: TextIO | None = None, unit: str = "call") -> Iterator[Callable[[], None]]:
    """Shows how many calls of all generations are done: a bar on a terminal, elsewhere about ten plain lines.

    Args:
        calls: of all generations.
        stream: where to; standard error if None.
        unit: that is counted, where it is not calls.

    Yields:
        A function to be called after each call.
    """
    stream = stream or sys.stderr
    begun, done = time.perf_counter(), 0

    def left() -> str:
        per_call = (time.perf_counter() - begun) / done
        return f"about {duration((calls - done) * per_call)} left" if done < calls else ""

    if not draws(stream):

        def line() -> None:
            nonlocal done
            done += 1
            if done * LINES // calls > (done - 1) * LINES // calls:
                print(", ".join(filter(None, (f"{unit} {done}/{calls}", left()))), file=stream, flush=True)

        yield line
        return
    columns = (
        TextColumn(unit + " {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with bars(stream, *columns) as progress:
        task = progress.add_task("", total=calls, state="")

        def advance() -> None:
            nonlocal done
            done += 1
            progress.update(task, advance=1, state=left())

        yield advance
