"""The frame around every command: errors become one line and an exit status, and a signal unwinds the work."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

from adacache_engines.errors import AdaCacheError

FAILURE = 1
STOPPED = 128  # plus the signal's number, as shells have it


def run(program: str, work: Callable[[Callable[[], None]], None]) -> int:
    """Do the work and return the exit status: 0, 1 after an error, 130 when interrupted, 143 when terminated.

    Args:
        program: name of the command, for messages.
        work: does the work; it gets a function to call now and then, which interrupts it again if a library swallowed
            the interrupt.
    """
    stops: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stops.append(number)
        raise KeyboardInterrupt  # unwinds, so that what is half-built is deleted

    def check() -> None:
        if stops:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        work(check)
    # an interrupt inside a library can come out as any error of its own
    except (Exception, KeyboardInterrupt) as error:
        if stops:
            print(f"{program}: stopped; what was not finished was not written", file=sys.stderr)
            return STOPPED + stops[0]
        if not isinstance(error, AdaCacheError):
            raise
        print(f"{program}: {error}", file=sys.stderr)
        return FAILURE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0
