"""The time by which a server dates its jobs, and by which their deadlines pass and their videos grow old.

It is the machine's time when the process began, and the seconds since then. So a machine whose clock is set while the
server runs, by a year or by a second, fails no job and deletes no video for that. The next server begins with the
machine's time, and compares it with the times that this one has stored.
"""

import logging
import time

log = logging.getLogger(__name__)
SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # with the time for which the machine slept
JUMP_SECONDS = 60.0  # difference from the machine's clock that is told


def _elapsed() -> float:
    return time.clock_gettime(SINCE_BOOT)


_began = min(time.time() - _elapsed() for _ in range(5))  # the least, since a process can be interrupted in between


def now() -> float:
    """Return the time in seconds since 1970."""
    return _began + _elapsed()


class JumpWatch:
    """A look at the machine's clock, which tells when somebody has set it."""

    def __init__(self) -> None:
        self._told = 0.0  # difference in seconds that was told last

    def look(self) -> None:
        """Log a warning, if the machine's clock is elsewhere than at the last look."""
        ahead = time.time() - now()
        if abs(ahead - self._told) > JUMP_SECONDS:
            self._told = ahead
            log.warning(
                "the machine's clock is %.0f seconds ahead of this server's; the server keeps its own until a restart",
                ahead,
            )
