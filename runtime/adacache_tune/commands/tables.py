"""Print tables at a readable width, whether or not a terminal shows them."""

from rich.console import RenderableType

from adacache_runtime.commands.console import console

WIDTH = 140  # characters of a line where there is no terminal, which would say how wide it is


def show(table: RenderableType) -> None:
    """Print a table to standard output."""
    usual = console()
    (usual if usual.is_terminal else console(width=WIDTH)).print(table)
