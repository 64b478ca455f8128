"""The console of all commands, which shows texts as they are."""

from typing import Any

from rich.console import Console


def console(**options: Any) -> Console:
    """Return a console that takes no name in a table for markup, such as ``[red]``, and no word for a picture.

    Args:
        **options: options of ``rich.console.Console``.
    """
    return Console(markup=False, emoji=False, **options)
