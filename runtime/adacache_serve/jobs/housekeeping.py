"""Threads that carry out duties again and again, each with a period of its own."""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from sqlalchemy.exc import SQLAlchemyError

from adacache_serve.jobs.databases import reason

log = logging.getLogger(__name__)
LEAVE_SECONDS = 5.0  # for the duty that is under way when the server stops

Duties = Mapping[Callable[[], None], float]


class Housekeeper:
    """Groups of duties, each group in a thread, so that a group whose duty blocks does not delay the others."""

    def __init__(self, *groups: Duties) -> None:
        """Describe the threads; :meth:`start` starts them.

        Args:
            groups: for each thread, its duties and their periods in seconds.
        """
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(duties,), name="housekeeping", daemon=True) for duties in groups
        ]

    def start(self) -> None:
        """Start the threads; every duty is due at once."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop after the duties that are under way, and wait for these a few seconds at most."""
        self._stopping.set()
        end = time.monotonic() + LEAVE_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))

    def _run(self, duties: Duties) -> None:
        due = dict.fromkeys(duties, 0.0)
        failing: dict[Callable[[], None], str] = {}  # what each duty that fails said last
        while not self._stopping.is_set():
            for duty, period in duties.items():
                if time.monotonic() < due[duty] or self._stopping.is_set():
                    continue
                name = {"duty": getattr(duty, "__name__", repr(duty))}
                try:
                    duty()
                except Exception as error:  # the duty is tried again in the next round
                    said = reason(error)
                    if failing.get(duty) != said:  # else the log has it
                        known = isinstance(error, SQLAlchemyError)
                        log.error("housekeeping fails: %s", said, extra=name, exc_info=None if known else error)
                    failing[duty] = said
                else:
                    if failing.pop(duty, None) is not None:
                        log.info("housekeeping works again", extra=name)
                due[duty] = time.monotonic() + period
            self._stopping.wait(min(duties.values()))
