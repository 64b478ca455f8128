"""A worker: a process that owns one device and makes several videos on it in turn, a call of the denoiser at a time.

Between two steps it hears what the server wants: new jobs, cancelled ones, its end. When the server is gone, so is it.
"""

import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from adacache_engines.errors import AdaCacheError, InputError
from adacache_runtime.memory import MemoryPlan, megabytes
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.start import Image
from adacache_runtime.trace import CallRecord, Trace, entry
from adacache_serve.fair import Turns
from adacache_serve.film import Step, film, suffix
from adacache_serve.lifetime import working
from adacache_serve.logs import configure
from adacache_serve.messages import (
    Began,
    Begin,
    Called,
    Cancel,
    Cancelled,
    Completed,
    Decoded,
    Failed,
    FromWorker,
    Ready,
    Turn,
    to_worker,
)
from adacache_serve.orders import check
from adacache_serve.settings import Settings
from adacache_serve.spool import finish
from adacache_serve.uploads import read_picture

log = logging.getLogger(__name__)
NICENESS = 5  # below the server, whose answers are short
WARM_UP_STEPS = 2

Models = Mapping[str, Pipeline]
Open = Callable[[Settings], Models]


@dataclass
class Job:
    """One that was begun, or waits for memory.

    Attributes:
        begin: as it came.
        pipeline: of its model.
        request: of its order.
        picture: that it begins with.
        plan: of its memory.
        calls: of the denoiser, in all.
        output: where the video goes.
        steps: None until it has its memory.
        entries: of the calls so far.
    """

    begin: Begin
    pipeline: Pipeline
    request: Request
    picture: Image | None
    plan: MemoryPlan
    calls: int
    output: Path
    steps: Generator[Step, None, Trace] | None = None
    entries: list[dict[str, Any]] = field(default_factory=list)


def work(connection: Connection, settings: Settings, device: str | None, open_models: Open) -> None:
    """The process, until the server closes the pipe.

    Args:
        connection: to the server.
        settings: of the server.
        device: what CUDA_VISIBLE_DEVICES is to be; None = as it is.
        open_models: loads the models, by name.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the server's; it ends us when it has drained
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    try:
        with working(settings.data):
            worker = Worker(connection, open_models(settings), settings)
            configure()
            worker.warm_up()
            worker.run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # nobody is there to make videos for


class Worker:
    """What :func:`work` does once the models are loaded."""

    def __init__(self, connection: Connection, models: Models, settings: Settings) -> None:
        self._connection, self._models, self._settings = connection, models, settings
        self._jobs: dict[str, Job] = {}
        self._waiting: list[str] = []  # for memory, the first that came first
        self._turns: Turns[str] = Turns()
        self._turn: str | None = None  # whose step was last
        self._budget = settings.memory_budget if settings.memory_budget is not None else free_nbytes(models)

    def warm_up(self) -> None:
        """A short video of every model, so that what is slow or wrong the first time is so before a client waits."""
        for name, pipeline in self._models.items():
            began = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                request = Request(prompts=("warm-up",), steps=WARM_UP_STEPS)
                output = Path(folder, f"video{suffix(pipeline.bundle.manifest.video.frames)}")
                for _ in film(pipeline, request, output):
                    pass
            log.info("warm-up", extra={"model": name, "seconds": time.perf_counter() - began})
        self._send(Ready(pid=os.getpid()))

    def run(self) -> None:
        """Until the pipe ends.

        Raises:
            EOFError: it has.
        """
        while True:
            while self._connection.poll(0 if len(self._turns) else None):
                self._hear()
                self._admit()
            job = self._jobs[self._turns.next()]
            began = time.perf_counter()
            self._step(job)
            self._turns.spent(job.begin.job, time.perf_counter() - began)
            if job.begin.job not in self._jobs:
                self._admit()

    def _hear(self) -> None:
        message = to_worker.validate_json(self._connection.recv_bytes())
        if isinstance(message, Cancel):
            if job := self._jobs.get(message.job):
                self._end(job)
                self._send(Cancelled(job=job.begin.job, attempt=job.begin.attempt))
            return
        try:
            job = self._planned(message)
        except Exception as error:  # whatever it is, it is that of one job
            self._failed(message, error)
            return
        self._jobs[message.job] = job
        self._waiting.append(message.job)

    def _planned(self, begin: Begin) -> Job:
        pipeline = self._models[begin.model]
        picture = Image("the image", read_picture(Path(begin.picture)), begin.order.image_at) if begin.picture else None
        checked = check(begin.order, pipeline.bundle, self._settings)
        plan = pipeline.memory(checked.request)
        if plan.beside_weights > self._budget:
            raise InputError(
                f"this video takes {megabytes(plan.beside_weights)} MB of memory beside the weights, and all that "
                f"there is for videos is {megabytes(self._budget)} MB; choose a smaller size or fewer seconds"
            )
        settled = checked.settled
        output = Path(begin.output + suffix(settled.frames))
        return Job(begin, pipeline, checked.request, picture, plan, len(settled.updates), output)

    def _admit(self) -> None:
        """Begins those that wait, in order, as far as their memory is there."""
        while self._waiting and self._fits(self._jobs[self._waiting[0]]):
            job = self._jobs[self._waiting.pop(0)]
            job.steps = film(job.pipeline, job.request, job.output, job.picture)
            self._turns.add(job.begin.job, job.begin.order.priority)
            self._send(Began(job=job.begin.job, attempt=job.begin.attempt, nbytes=job.plan.run))

    def _fits(self, job: Job) -> bool:
        """Beside those that have begun: what each keeps, and what one of them has before or after its run."""
        plans = [job.plan, *(self._jobs[name].plan for name in self._turns)]
        return sum(plan.run for plan in plans) + max(max(p.encoder, p.decoder) for p in plans) <= self._budget

    def _step(self, job: Job) -> None:
        assert job.steps is not None
        begin = job.begin
        of = {"job": begin.job, "attempt": begin.attempt}
        if self._turn != begin.job:
            self._turn = begin.job
            self._send(Turn(**of))
        try:
            step = next(job.steps, None)
            if step is None:
                finish(job.output, job.calls, job.entries)
        except Exception as error:  # whatever it is, it is that of one job
            self._end(job)
            self._failed(begin, error)
            return
        if step is None:
            self._end(job)
            self._send(Completed(**of, file=job.output.name, nbytes=job.output.stat().st_size))
        elif isinstance(step, CallRecord):
            memory = sum(self._jobs[name].plan.run for name in self._turns)
            job.entries.append(entry(step))
            self._send(Called(**of, of=job.calls, call=job.entries[-1], memory=memory))
        else:
            self._send(Decoded(**of, frames=step.frames, of=step.of))

    def _end(self, job: Job) -> None:
        """Lets go of all it has."""
        name = job.begin.job
        del self._jobs[name]
        if job.steps is None:
            self._waiting.remove(name)
            return
        job.steps.close()
        self._turns.remove(name)

    def _failed(self, begin: Begin, error: Exception) -> None:
        if not isinstance(error, AdaCacheError):
            log.exception("a job failed with an error that is nobody's", extra={"job": begin.job}, exc_info=error)
        code = type(error).__name__ if isinstance(error, AdaCacheError) else "internal"
        message = str(error) if isinstance(error, AdaCacheError) else "an internal error; the server's log says more"
        self._send(Failed(job=begin.job, attempt=begin.attempt, code=code, message=message))

    def _send(self, message: FromWorker) -> None:
        self._connection.send_bytes(message.model_dump_json().encode())


def free_nbytes(models: Models) -> int:
    """What is free on the device, or where it does not say, of the machine's memory."""
    told = [pipeline.backend.device.free_nbytes() for pipeline in models.values()]
    known = [nbytes for nbytes in told if nbytes is not None]
    return min(known) if known else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
