"""A place for results that takes videos only when a test says so, and what is left of jobs at the end."""

import threading
from pathlib import Path

from adacache_serve.jobs.results import Folder
from tests.helpers.serving.fake_workers import Bench
from tests.helpers.waiting import HANG_SECONDS, until


class Gate(Folder):
    """A folder that accepts no file until it is opened, and fails a number of times before that."""

    def __init__(self, folder: Path, failures: int = 0) -> None:
        super().__init__(folder)
        self.open, self.failures = threading.Event(), failures
        self.tries = 0

    def put(self, file: Path, name: str) -> None:
        self.tries += 1
        assert self.open.wait(HANG_SECONDS)
        if self.failures:
            self.failures -= 1
            raise OSError("no room")
        super().put(file, name)


def gated(bench: Bench, failures: int = 0) -> Gate:
    gate = Gate(bench.settings.data / "results", failures)
    bench.service.publisher._results = bench.service.results = gate
    return gate


def left_alone(bench: Bench) -> None:
    """Check that no job waits or runs, and that the spool is empty."""
    until(lambda: bench.service.store.count("queued", "in_progress") == 0)
    until(lambda: len(bench.service.dispatcher) + len(bench.service.publisher) == 0)
    assert bench.files("spool") == []
