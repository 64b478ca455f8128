"""Numbers of a command line that must be in a range."""

import argparse
from collections.abc import Mapping

from adacache_engines.errors import OutOfRangeError

Ranges = Mapping[str, tuple[float, float]]


def check_ranges(options: argparse.Namespace, ranges: Ranges) -> None:
    """Check that numbers are neither too small nor too large, nor NaN; an option that was not given is not checked.

    Args:
        options: the parsed command line.
        ranges: least and most value of each option, by its name with underscores.

    Raises:
        OutOfRangeError: one is.
    """
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if value is None or least <= value <= most:
            continue
        shown = (
            f"{value}" if len(f"{value}") < 50 else f"{value:.3g}" if isinstance(value, float) else "of so many digits"
        )
        told = f"at most {most:g}" if value > most else f"at least {least:g}"
        raise OutOfRangeError(f"--{name.replace('_', '-')} {shown} is not possible; choose {told}")
