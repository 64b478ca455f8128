"""Show the progress of a profile over its engines."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from adacache_runtime.commands.progress import LINES, bars, draws


@contextmanager
def engine_progress(count: int, stream: TextIO | None = None) -> Iterator[Callable[[str], None]]:
    """Show which engine is measured: a bar on a terminal, elsewhere about ten plain lines.

    Args:
        count: number of engines.
        stream: stream to write to; standard error if None.

    Yields:
        A function to be called with an engine's name before it is measured.
    """
    stream = stream or sys.stderr
    begun = 0
    if not draws(stream):

        def line(name: str) -> None:
            nonlocal begun
            begun += 1
            if begun * LINES // count > (begun - 1) * LINES // count:
                print(f"engine {begun}/{count}, {name}", file=stream, flush=True)

        yield line
        return
    columns = (
        TextColumn("engine {task.fields[begun]}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[name]}", markup=False),
        TimeElapsedColumn(),
    )
    with bars(stream, *columns) as progress:
        task = progress.add_task("", total=count, begun=0, name="")

        def advance(name: str) -> None:
            nonlocal begun
            progress.update(task, completed=begun, begun=begun + 1, name=name)
            begun += 1

        yield advance
        progress.update(task, completed=count)
