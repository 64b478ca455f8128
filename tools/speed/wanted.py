"""Measured ratios with the limits that they are wanted to keep, as a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from tools.speed.timing import Spread


@dataclass(frozen=True)
class Row:
    """A line of the table; ``wanted`` compares the median with a limit."""

    key: str
    what: str
    spread: Spread
    wanted: str
    met: bool


def at_most(key: str, what: str, spread: Spread, bound: float) -> Row:
    return Row(key, what, spread, f"at most {bound:g}", spread.median <= bound)


def at_least(key: str, what: str, spread: Spread, bound: float) -> Row:
    return Row(key, what, spread, f"at least {bound:g}", spread.median >= bound)


def table(rows: Sequence[Row]) -> Table:
    """Return the table of ratios for a terminal."""
    made = Table("", "median", "min to max", "wanted", "", title="on this machine, in this run")
    for row in rows:
        low, high = row.spread.low, row.spread.high
        spread = "measured once" if low == high else f"{low:.4f} to {high:.4f}"
        made.add_row(row.what, f"{row.spread.median:.4f}", spread, row.wanted, "yes" if row.met else "NO")
    return made
