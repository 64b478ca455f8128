"""Values that nobody should give to an option of a command line, by the kind of the option."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

HUGE = "9" * 400
WHOLE = ("-1", "0", "99999999999", HUGE, "9" * 5000, "", "nan")
REAL = ("nan", "inf", "-inf", "-1", "1e308", "5e-324", HUGE, "")
WORDS = ("", "\udcff", "y" * 100_000, "\x1b[2J", "a\nb\r", "::", "-1")
PATHS = ("", "/", "\udcff.npz", "x" * 300, "y/" * 5000, "\x1b[2J.json")


def hostile(parser: argparse.ArgumentParser) -> Iterator[list[str]]:
    """Yield the arguments of each option of a parser with each hostile value of its kind."""
    for action in parser._actions:
        if action.option_strings and action.nargs != 0:
            for value in _values(action):
                yield [f"{action.option_strings[-1]}={value}"]


def _values(action: argparse.Action) -> Sequence[str]:
    if action.type is int:
        return WHOLE
    if action.type is float:
        return REAL
    return PATHS if action.type is Path else WORDS
