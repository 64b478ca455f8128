"""What the command lines share: errors become one line and an exit status, and a stop unwinds."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

from adacache_engines.errors import AdaCacheError

FAILURE, INTERRUPTED, TERMINATED = 1, 130, 143


def run(program: str, work: Callable[[], None]) -> int:
    """Does the work and returns the exit status: 0, 1 after an error, 130 when interrupted; 143 when terminated."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        work()
    except AdaCacheError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        print(f"{program}: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    return 0


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)  # unwinds, so that what is half-built is deleted
