"""A worker: a process that owns one device and makes several videos on it in turn, a call of the denoiser at a time.

Between two steps it hears what the server wants: new jobs, cancelled ones, its end. When the server is gone, so is it.
"""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from adacache_engines.errors import AdaCacheError, InputError
from adacache_runtime.memory.estimate import megabytes
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.trace import CallRecord, entry
from adacache_serve.device.attempts import Attempt, largest_arena, most_nbytes
from adacache_serve.device.fair_share import Turns
from adacache_serve.device.messages import (
    Began,
    Begin,
    Called,
    Cancel,
    Cancelled,
    Completed,
    Decoded,
    Failed,
    FromWorker,
    Memory,
    Phase,
    PhaseEnded,
    Ready,
    Turn,
    to_worker,
)
from adacache_serve.device.video_file import Denoised, Encoded, Part, Step, film, suffix
from adacache_serve.device.warm_up import warm_ups
from adacache_serve.disk.locks import worker_lock
from adacache_serve.disk.spool import finish
from adacache_serve.logs import about, configure
from adacache_serve.orders.check import request_of
from adacache_serve.orders.images import read_image
from adacache_serve.settings import Settings

log = logging.getLogger(__name__)
NICENESS = 5  # below the server, whose answers are short
CANCELLED = "cancelled"

Models = Mapping[str, Pipeline]
Open = Callable[[Settings], Models]


def work(connection: Connection, settings: Settings, device: str | None, open_models: Open) -> None:
    """The process, until the server closes the pipe.

    Args:
        connection: to the server.
        settings: of the server.
        device: what CUDA_VISIBLE_DEVICES is to be; None = as it is.
        open_models: loads the models, by name.

    Raises:
        SystemExit: with status 1, the models cannot be loaded, or make no video; the log says why.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the server's; it ends us when it has drained
        signal.signal(number, signal.SIG_IGN)
    configure()
    with contextlib.suppress(OSError):  # a sandbox may forbid it, and it is only a courtesy
        os.nice(NICENESS)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    try:
        with worker_lock(settings.data):
            worker = Worker(connection, open_models(settings), settings)
            worker.warm_up()
            worker.run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # nobody is there to make videos for
    except Exception as error:
        known = isinstance(error, AdaCacheError)
        log.error("a worker ends: %s", error if known else repr(error), exc_info=None if known else error)
        sys.exit(1)


class Worker:
    """What :func:`work` does once the models are loaded."""

    def __init__(
        self,
        connection: Connection,
        models: Models,
        settings: Settings,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``clock``: seconds, by which turns are shared."""
        self._connection, self._models, self._settings, self._clock = connection, models, settings, clock
        self._jobs: dict[str, Attempt] = {}
        self._waiting: list[str] = []  # for memory, the first that came first
        self._turns: Turns[str] = Turns()
        self._turn: str | None = None  # whose step was last
        self._budget = settings.memory_budget if settings.memory_budget is not None else free_nbytes(models)

    def warm_up(self) -> None:
        """Short videos of every model, so that what is slow or wrong the first time is so before a client waits."""
        for name, pipeline in self._models.items():
            began = time.perf_counter()
            for request in warm_ups(pipeline):
                with tempfile.TemporaryDirectory() as folder:
                    prepared = pipeline.prepare(request)
                    output = Path(folder, f"video{suffix(prepared.video.frames)}")
                    for _ in film(prepared, output):
                        pass
            log.info("warm-up", extra={"model": name, "seconds": round(time.perf_counter() - began, 3)})
        if self._settings.memory_budget is None:  # libraries keep some of what the first videos took
            self._budget = free_nbytes(self._models)
        log.info("memory for videos", extra={"budget_mb": megabytes(self._budget)})
        self._send(Ready(pid=os.getpid()))
        self._tell_memory()

    def run(self) -> None:
        """Until the pipe ends.

        Raises:
            EOFError: it has.
        """
        while True:
            self.turn()

    def turn(self) -> None:
        """Hears what there is, waiting for it where there is nothing else to do; then a step of a job, if there is one.

        Raises:
            EOFError: the pipe has ended.
        """
        patience = 0 if len(self._turns) else None
        while self._connection.poll(patience):
            self._hear()
            self._admit()
            patience = 0
        if not len(self._turns):
            return
        job = self._jobs[self._turns.next()]
        with about(job.begin.job):
            self._step(job)
        self._admit()

    def _hear(self) -> None:
        message = to_worker.validate_json(self._connection.recv_bytes())
        with about(message.job):
            if isinstance(message, Cancel):
                if job := self._jobs.get(message.job):
                    self._end(job, CANCELLED)
                    self._send(Cancelled(job=job.begin.job, attempt=job.begin.attempt))
                return
            try:
                job = self._planned(message)
            except Exception as error:  # whatever it is, it is that of one job
                self._send(failure(message, error))
                return
        self._jobs[message.job] = job
        self._waiting.append(message.job)

    def _planned(self, begin: Begin) -> Attempt:
        pipeline = self._models[begin.model]
        image = read_image(Path(begin.image)) if begin.image else None
        prepared = pipeline.prepare(request_of(begin.order, pipeline.bundle, self._settings, image))
        job = Attempt(begin, pipeline, prepared, Path(begin.output + suffix(prepared.video.frames)))
        if (most := job.most()) > self._budget:
            raise InputError(
                f"this video takes {megabytes(most)} MB of memory beside the weights, and all that there is for videos "
                f"is {megabytes(self._budget)} MB; choose a smaller size or fewer seconds"
            )
        return job

    def _admit(self) -> None:
        """Begins those that wait, in order, as far as their memory is there."""
        while self._waiting:
            job = self._jobs[self._waiting[0]]
            if self._planned_nbytes(job) > self._budget:
                return
            del self._waiting[0]
            job.steps = film(job.prepared, job.output)
            job.since = time.time()
            self._turns.add(job.begin.job, job.begin.order.priority)
            self._send(Began(job=job.begin.job, attempt=job.begin.attempt, nbytes=job.most()))
            self._tell_memory()

    def _planned_nbytes(self, *more: Attempt) -> int:
        """The most that those in flight can come to take at once, and ``more`` with them."""
        return most_nbytes([*more, *(self._jobs[name] for name in self._turns)])

    def _tell_memory(self) -> None:
        told = [pipeline.backend.device.free_nbytes() for pipeline in self._models.values()]
        free = min((nbytes for nbytes in told if nbytes is not None), default=None)
        self._send(Memory(planned=self._planned_nbytes(), budget=self._budget, free=free, waiting=len(self._waiting)))

    def _step(self, job: Attempt) -> None:
        assert job.steps is not None
        message: FromWorker | None
        if self._turn != job.begin.job:
            self._turn = job.begin.job
            self._send(Turn(job=job.begin.job, attempt=job.begin.attempt))
        began = self._clock()
        try:
            step = next(job.steps, None)
            message = self._completed(job) if step is None else self._told(job, step)
        except Exception as error:  # whatever it is, it is that of one job
            message = failure(job.begin, error)
        # not before here: what was raised holds on to the buffers
        seconds = self._clock() - began
        self._turns.spent(job.begin.job, seconds)
        job.seconds += seconds
        if isinstance(message, Completed | Failed):
            self._end(job, message.code if isinstance(message, Failed) else None)
        elif isinstance(step, Encoded) and step.what == "text":
            self._enter(job, "denoise")
        elif isinstance(step, Denoised):
            self._enter(job, "decode")
        if message is not None:
            self._send(message)

    def _told(self, job: Attempt, step: Step) -> FromWorker | None:
        begin = job.begin
        if isinstance(step, CallRecord):
            job.entries.append(entry(step))
            return Called(
                job=begin.job, attempt=begin.attempt, model=begin.model, of=job.prepared.calls, call=job.entries[-1]
            )
        if isinstance(step, Part):
            return Decoded(job=begin.job, attempt=begin.attempt, frames=step.frames, of=step.of)
        return None

    def _completed(self, job: Attempt) -> Completed:
        begin, output = job.begin, job.output
        finish(output, job.prepared.calls, job.entries)
        return Completed(job=begin.job, attempt=begin.attempt, file=output.name, nbytes=output.stat().st_size)

    def _enter(self, job: Attempt, phase: Phase) -> None:
        self._leave(job, None)
        job.phase, job.since, job.seconds = phase, time.time(), 0.0
        job.arena = largest_arena(job.pipeline, [self._jobs[name] for name in self._turns])
        self._tell_memory()

    def _leave(self, job: Attempt, error: str | None) -> None:
        begin = job.begin
        self._send(
            PhaseEnded(
                job=begin.job,
                attempt=begin.attempt,
                model=begin.model,
                phase=job.phase,
                began=job.since,
                ended=time.time(),
                device_seconds=job.seconds,
                error=error,
            )
        )

    def _end(self, job: Attempt, error: str | None) -> None:
        """Lets go of all it has."""
        name = job.begin.job
        del self._jobs[name]
        if job.steps is None:
            self._waiting.remove(name)
            return
        try:
            job.steps.close()
        except Exception:  # it is gone all the same, and the others go on
            log.exception("a job could not be tidied up")
        job.steps = None
        self._turns.remove(name)
        self._leave(job, error)
        self._tell_memory()

    def _send(self, message: FromWorker) -> None:
        self._connection.send_bytes(message.model_dump_json().encode())


def failure(begin: Begin, error: Exception) -> Failed:
    """What the server is told of an error, and the log."""
    if isinstance(error, AdaCacheError):
        code, message = type(error).__name__, str(error)
    elif isinstance(error, MemoryError):
        code, message = "MemoryError", "memory ran out; choose a smaller size or fewer seconds, or try again later"
    else:
        code, message = "internal", "an internal error; the server's log says more"
        log.error("a job failed with an error that is nobody's", exc_info=error)
    log.info("a job failed", extra={"code": code, "reason": message})
    return Failed(job=begin.job, attempt=begin.attempt, code=code, message=message)


def free_nbytes(models: Models) -> int:
    """What is free on the device, or where it does not say, of the machine's memory."""
    told = [pipeline.backend.device.free_nbytes() for pipeline in models.values()]
    known = [nbytes for nbytes in told if nbytes is not None]
    return min(known) if known else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
