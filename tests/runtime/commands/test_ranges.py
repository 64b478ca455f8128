"""Numbers of a command line that are out of their range."""

from argparse import Namespace

import pytest

from adacache_engines.errors import OutOfRangeError
from adacache_runtime.commands.ranges import check_ranges

RANGES = {"keep_hours": (0, 100), "jobs": (1, 8)}


def test_what_is_inside_and_what_is_not_given_pass() -> None:
    check_ranges(Namespace(keep_hours=0.0, jobs=8), RANGES)
    check_ranges(Namespace(keep_hours=None, jobs=1), RANGES)


@pytest.mark.parametrize(
    ("hours", "jobs", "message"),
    [
        (-1.0, 1, "--keep-hours -1.0 is not possible; choose at least 0"),
        (float("nan"), 1, "--keep-hours nan is not possible; choose at least 0"),
        (float("inf"), 1, "--keep-hours inf is not possible; choose at most 100"),
        (1e308, 1, "--keep-hours 1e+308 is not possible; choose at most 100"),
        (None, 0, "--jobs 0 is not possible; choose at least 1"),
        (None, int("9" * 400), "--jobs of so many digits is not possible; choose at most 8"),
    ],
)
def test_what_is_outside_is_told(hours: float | None, jobs: int, message: str) -> None:
    with pytest.raises(OutOfRangeError) as caught:
        check_ranges(Namespace(keep_hours=hours, jobs=jobs), RANGES)
    assert str(caught.value) == message
