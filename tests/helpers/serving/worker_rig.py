"""A worker in the test's own process, which takes turns when the test says so."""

import multiprocessing
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adacache_engines.contract.device import HostDevice
from adacache_engines.contract.fake import FakeBackend, Function
from adacache_runtime.pipeline import Pipeline
from adacache_serve.device.messages import (
    Begin,
    Called,
    Cancelled,
    Completed,
    Failed,
    FromWorker,
    ToWorker,
    from_worker,
)
from adacache_serve.device.worker import Models, Worker
from adacache_serve.orders.images import write_image
from adacache_serve.orders.schema import CreateVideo
from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import functions, write_model

MODEL = "fake"


ENDS = (Completed, Failed, Cancelled)


class Rig:
    """A worker in this process that takes a turn when it is told to."""

    def __init__(
        self,
        models: Models,
        folder: Path,
        budget: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
        expert_offload: bool = False,
    ) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self.folder, self.said = folder, list[FromWorker]()
        folder.mkdir(exist_ok=True)
        settings = Settings(folder, memory_budget=budget, expert_offload=expert_offload)
        self.worker = Worker(theirs, models, settings, clock)
        self._running: set[str] = set()

    def send(self, message: ToWorker) -> None:
        self._ours.send_bytes(message.model_dump_json().encode())

    def begin(self, name: str, model: str = MODEL, image: np.ndarray | None = None, **order: Any) -> None:
        path = None
        if image is not None:
            path = self.folder / f"{name}.npy"
            write_image(path, image)
        asked = CreateVideo(**{"prompt": "a boat", "seed": 1, **order})
        output = str(self.folder / name)
        self._running.add(name)
        self.send(Begin(job=name, attempt=1, model=model, order=asked, image=path and str(path), output=output))

    def turn(self) -> None:
        assert self._running, "it would wait for ever"
        self.worker.turn()
        while self._ours.poll(0):
            message = from_worker.validate_json(self._ours.recv_bytes())
            self.said.append(message)
            if isinstance(message, ENDS):
                self._running.discard(message.job)

    def finish(self) -> dict[str, bytes]:
        """Take turns until all jobs have ended; return their videos."""
        while self._running:
            self.turn()
        return {said.job: (self.folder / said.file).read_bytes() for said in self.of(Completed)}

    def of(self, kind: Any, job: str | None = None) -> list[Any]:
        return [said for said in self.said if isinstance(said, kind) and job in (None, getattr(said, "job", None))]

    def calls(self, job: str) -> list[dict[str, Any]]:
        """Return the decisions and measurements of a job's calls, without times."""
        return [{k: v for k, v in said.call.items() if not k.endswith("_ms")} for said in self.of(Called, job)]


def fake(folder: Path, device: HostDevice | None = None, own: Mapping[str, Function] = {}) -> Models:
    bundle = write_model(folder, conditioned=True)
    return {MODEL: Pipeline(bundle, FakeBackend({**functions(), **own}, device=device or HostDevice()))}


PICTURE = np.full((1, 2, 5, 3), 90, np.uint8)
