"""Wait for other threads and processes without letting a test's result depend on how fast the machine is."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

HANG_SECONDS = 600.0  # ends a test that hangs, and proves nothing: no working machine needs so long for any step


def until(condition: Callable[[], T]) -> T:
    """Return the first true value that ``condition`` gives, however long that takes.

    Raises:
        AssertionError: the condition is still false after ``HANG_SECONDS``.
    """
    end = time.monotonic() + HANG_SECONDS
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"not true after {HANG_SECONDS:.0f} seconds: {condition}")
