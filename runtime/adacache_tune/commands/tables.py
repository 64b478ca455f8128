"""Print tables at a readable width, whether or not a terminal shows them."""

from rich.console import Console, RenderableType

WIDTH = 140  # characters of a line where there is no terminal, which would say how wide it is


def show(table: RenderableType) -> None:
    """Print a table to standard output."""
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table)
