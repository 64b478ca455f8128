"""A service on fake workers in the test's own process, which do what the test says."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from adacache_engines.bundle.files import open_bundle
from adacache_serve.device.messages import (
    Began,
    Begin,
    Called,
    Cancel,
    Cancelled,
    Completed,
    Failed,
    FromWorker,
    Ready,
    ToWorker,
    Turn,
)
from adacache_serve.disk.spool import finish
from adacache_serve.jobs import dispatching, service
from adacache_serve.jobs.results import Results, open_results
from adacache_serve.jobs.service import Service
from adacache_serve.jobs.store import Job, Store
from adacache_serve.jobs.table import jobs
from adacache_serve.keys import ANONYMOUS, Client
from adacache_serve.orders.schema import CreateVideo
from adacache_serve.settings import Settings
from tests.helpers.waiting import until

CALL = {"call": 1, "computed": True, "engine_ms": {"blocks": 1.0}, "wall_ms": 2.0, "distance": 0.5}


class FakeWorker:
    """A stand-in for :class:`adacache_serve.device.supervisor.SupervisedWorker`."""

    made: ClassVar[list["FakeWorker"]] = []

    def __init__(self, settings: Settings, device: str | None, _open: Any, handle: Any, died: Any) -> None:
        self.device, self.ready, self.restarts, self.pid = device, False, 0, 1
        self.heard = time.monotonic()
        self.handle: Callable[[FakeWorker, FromWorker], None] = handle
        self.died: Callable[[FakeWorker], None] = died
        self.sent: list[ToWorker] = []
        self.killed = False
        FakeWorker.made.append(self)

    def start(self) -> None:
        self.ready = True
        self.says(Ready(pid=1))

    def send(self, message: ToWorker) -> None:
        self.sent.append(message)

    def kill(self) -> None:
        self.killed = True

    def stop(self) -> None:
        self.ready = False

    # what the test has it do

    def says(self, message: FromWorker) -> None:
        self.handle(self, message)

    def dies(self, again: bool = True) -> None:
        self.ready = False
        self.died(self)
        if again:
            self.start()

    def begun(self, job: Job | None = None) -> list[Begin]:
        return [m for m in self.sent if isinstance(m, Begin) and (job is None or m.job == job.id)]

    def cancelled(self) -> list[str]:
        return [message.job for message in self.sent if isinstance(message, Cancel)]

    def turn(self, begin: Begin) -> None:
        self.says(Began(job=begin.job, attempt=begin.attempt, nbytes=1))
        self.says(Turn(job=begin.job, attempt=begin.attempt))

    def calls(self, begin: Begin) -> None:
        self.turn(begin)
        self.says(Called(job=begin.job, attempt=begin.attempt, model=begin.model, of=1, call=CALL))

    def writes(self, begin: Begin, content: bytes = b"a video") -> None:
        """Write the video and its record, without a message to the server."""
        video = Path(f"{begin.output}.mp4")
        video.write_bytes(content)
        finish(video, 1, [CALL])

    def completes(self, begin: Begin, content: bytes = b"a video") -> None:
        self.calls(begin)
        self.writes(begin, content)
        self.says(Completed(job=begin.job, attempt=begin.attempt, file="video.mp4", nbytes=len(content)))

    def lies(self, begin: Begin) -> None:
        """Report a video that was not made."""
        self.says(Completed(job=begin.job, attempt=begin.attempt, file="video.mp4", nbytes=1))

    def fails(self, begin: Begin) -> None:
        self.says(Failed(job=begin.job, attempt=begin.attempt, code="EngineError", message="it broke"))

    def lets_go(self, begin: Begin) -> None:
        self.says(Cancelled(job=begin.job, attempt=begin.attempt))


class Bench:
    """A service on fake workers, which can crash and start again on the same data."""

    def __init__(self, folder: Path, model: Path, patch: pytest.MonkeyPatch, **settings: Any) -> None:
        patch.setattr(dispatching, "SupervisedWorker", FakeWorker)
        patch.setattr(service, "image_of_order", lambda *_: np.zeros((1, 2, 5, 3), np.uint8))  # without a process
        self.model = model
        self.settings = Settings(folder / "data", **settings)
        self.settings.data.mkdir(parents=True, exist_ok=True)
        self.wrap: Callable[[Results], Results] = lambda results: results
        self.start()

    def start(self) -> None:
        FakeWorker.made = []
        store = Store(self.settings.database or f"sqlite:///{self.settings.data / 'jobs.sqlite'}")
        self.results = self.wrap(open_results(self.settings.results or str(self.settings.data / "results")))
        self.service = Service(
            self.settings, {"fake": open_bundle(self.model)}, store, self.results, lambda _settings: {}
        )
        self.service.start()
        self.workers = FakeWorker.made
        self.worker = self.workers[0]

    def crash(self) -> None:
        """End the service like a kill: no job is queued again, and no file is deleted."""
        service = self.service
        service.dispatcher.paused = True
        service._housekeeper.stop()
        service.publisher.stop()
        service.ownership.release()
        service.store.close()
        service._stopped = True

    def submit(self, client: Client = ANONYMOUS, image: bool = False, key: str | None = None, **order: Any) -> Job:
        pictured = {"image": "any"} if image else {}
        asked = CreateVideo(**{"prompt": "boat", "seed": 1, **pictured, **order})
        return self.service.submit(asked, client, key)[0]

    def job(self, job: Job) -> Job:
        found = self.service.store.get(job.id)
        assert found is not None
        return found

    def status(self, job: Job) -> str:
        return self.job(job).status

    def becomes(self, job: Job, status: str) -> Job:
        until(lambda: self.status(job) == status)
        return self.job(job)

    def age(self, job: Job, seconds: float) -> None:
        """Move the times of a job into the past."""
        with self.service.store.engine.begin() as connection:
            times = {time: jobs.c[time] - seconds for time in ("created", "deadline", "ended")}
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(times))

    def files(self, folder: str) -> list[str]:
        return sorted(path.name for path in (self.settings.data / folder).iterdir())


Benches = Callable[..., Bench]
