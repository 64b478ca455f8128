"""A worker: it owns one device and makes several videos on it in turn, one step of a generation at a time.

Between two steps it reads the server's messages: new jobs, cancelled jobs, the end of the pipe.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from adacache_engines.errors import AdaCacheError, DeviceLostError, InputError
from adacache_runtime import events
from adacache_runtime.memory.estimate import megabytes
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.trace import entry
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
from adacache_serve.device.video_file import suffix, write_events
from adacache_serve.device.warm_up import warm_ups
from adacache_serve.disk.files import is_full
from adacache_serve.disk.spool import finish
from adacache_serve.logs import about
from adacache_serve.orders.check import request_of
from adacache_serve.orders.images import read_image
from adacache_serve.settings import Settings

log = logging.getLogger(__name__)
CANCELLED = "cancelled"

Models = Mapping[str, Pipeline]


class Worker:
    """The models of one device, and the attempts at jobs that share it."""

    def __init__(
        self,
        connection: Connection,
        models: Models,
        settings: Settings,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Share out the device's free memory.

        Args:
            connection: the pipe to the server.
            models: the pipelines, by the name of their model.
            settings: the server's settings.
            clock: gives the time in seconds by which turns are shared.
        """
        self._connection, self._models, self._settings, self._clock = connection, models, settings, clock
        self._attempts: dict[str, Attempt] = {}  # by the name of their job
        self._waiting: list[str] = []  # jobs that wait for memory, in the order of arrival
        self._turns: Turns[str] = Turns()  # jobs that run
        self._turn: str | None = None  # the job that was worked at last
        self._budget = settings.memory_budget if settings.memory_budget is not None else free_nbytes(models)

    def warm_up(self) -> None:
        """Make short videos with every model, so that slow first calls and errors come before any job."""
        for name, pipeline in self._models.items():
            began = time.perf_counter()
            for request in warm_ups(pipeline):
                prepared = pipeline.prepare(request)
                with tempfile.TemporaryDirectory() as folder:
                    for _ in write_events(prepared, Path(folder, f"video{suffix(prepared.video.frames)}")):
                        pass
            log.info("warm-up", extra={"model": name, "seconds": round(time.perf_counter() - began, 3)})
        if self._settings.memory_budget is None:  # libraries keep some of the memory that the first videos took
            self._budget = free_nbytes(self._models)
        log.info("memory for videos", extra={"budget_mb": megabytes(self._budget)})
        self._send(Ready(pid=os.getpid()))
        self._report_memory()

    def run(self) -> None:
        """Take turns until the pipe ends.

        Raises:
            EOFError: the pipe has ended.
        """
        while True:
            self.turn()

    def turn(self) -> None:
        """Read all messages, waiting for one if no job runs, and then make one step of a job.

        Raises:
            EOFError: the pipe has ended.
            DeviceLostError: this process cannot use its GPU any more.
        """
        timeout = 0 if len(self._turns) else None
        while self._connection.poll(timeout):
            self._read()
            self._admit()
            timeout = 0
        if not len(self._turns):
            return
        attempt = self._attempts[self._turns.next()]
        with about(attempt.begin.job):
            self._step(attempt)
        self._admit()

    def _read(self) -> None:
        message = to_worker.validate_json(self._connection.recv_bytes())
        with about(message.job):
            if isinstance(message, Cancel):
                if attempt := self._attempts.get(message.job):
                    self._end(attempt, CANCELLED)
                    self._send(Cancelled(job=attempt.begin.job, attempt=attempt.begin.attempt))
                return
            self._take(message)
            try:
                attempt = self._prepare(message)
            except DeviceLostError:
                raise
            except Exception as error:  # any error of this job leaves the others alone
                self._send(failure(message, error))
                return
        self._attempts[message.job] = attempt
        self._waiting.append(message.job)

    def _prepare(self, begin: Begin) -> Attempt:
        pipeline = self._models[begin.model]
        image = read_image(Path(begin.image)) if begin.image else None
        prepared = pipeline.prepare(request_of(begin.order, pipeline.bundle, self._settings, image))
        attempt = Attempt(begin, pipeline, prepared, Path(begin.output + suffix(prepared.video.frames)))
        if (most := attempt.most()) > self._budget:
            raise InputError(
                f"this video needs {megabytes(most)} MB of memory beside the weights, and all memory for videos is "
                f"{megabytes(self._budget)} MB; choose a smaller size or fewer seconds"
            )
        return attempt

    def _admit(self) -> None:
        """Start waiting attempts, in the order of arrival, as far as there are places and memory."""
        while self._waiting:
            attempt = self._attempts[self._waiting[0]]
            if len(self._turns) >= self._settings.places or self._planned_nbytes(attempt) > self._budget:
                return
            del self._waiting[0]
            attempt.events = write_events(attempt.prepared, attempt.output)
            attempt.since = time.time()
            begin = attempt.begin
            self._turns.add(begin.job, begin.order.priority)
            self._send(Began(job=begin.job, attempt=begin.attempt, nbytes=attempt.most()))
            self._report_memory()

    def _planned_nbytes(self, *more: Attempt) -> int:
        """Return the most bytes that the running attempts, and ``more`` beside them, can have at once."""
        return most_nbytes([*more, *(self._attempts[job] for job in self._turns)])

    def _report_memory(self) -> None:
        known = [pipeline.free_nbytes() for pipeline in self._models.values()]
        free = min((nbytes for nbytes in known if nbytes is not None), default=None)
        self._send(Memory(planned=self._planned_nbytes(), budget=self._budget, free=free, waiting=len(self._waiting)))

    def _step(self, attempt: Attempt) -> None:
        assert attempt.events is not None
        begin = attempt.begin
        message: FromWorker | None
        self._take(begin)
        began = self._clock()
        try:
            event = next(attempt.events, None)
            message = self._complete(attempt) if event is None else self._report(attempt, event)
        except DeviceLostError:  # no job can go on in this process, and the jobs' next attempts are in another
            raise
        except Exception as error:  # any error of this job leaves the others alone
            message = failure(begin, error)
        # after the except clause, since the error keeps the generation's buffers alive
        seconds = self._clock() - began
        self._turns.spent(begin.job, seconds)
        attempt.seconds += seconds
        if isinstance(message, Completed | Failed):
            self._end(attempt, message.code if isinstance(message, Failed) else None)
        elif isinstance(event, events.TextEncoded):
            self._enter(attempt, "denoise")
        elif isinstance(event, events.Denoised):
            self._enter(attempt, "decode")
        if message is not None:
            self._send(message)

    def _take(self, begin: Begin) -> None:
        """Tell the server whose work comes next, so that a death of this process is held against the right job."""
        if self._turn != begin.job:
            self._turn = begin.job
            self._send(Turn(job=begin.job, attempt=begin.attempt))

    def _report(self, attempt: Attempt, event: events.Event) -> FromWorker | None:
        begin = attempt.begin
        if isinstance(event, events.Called):
            call = entry(event.record)
            attempt.entries.append(call)
            return Called(job=begin.job, attempt=begin.attempt, model=begin.model, of=event.total, call=call)
        if isinstance(event, events.Denoised):
            attempt.trace = event.trace
        if isinstance(event, events.Decoded):
            return Decoded(job=begin.job, attempt=begin.attempt, frames=event.done, of=event.total)
        return None

    def _complete(self, attempt: Attempt) -> Completed:
        begin, output = attempt.begin, attempt.output
        trace = attempt.trace
        assert trace is not None
        finish(output, attempt.prepared.calls, attempt.entries, trace.sizes, trace.granularity)
        return Completed(job=begin.job, attempt=begin.attempt, file=output.name, nbytes=output.stat().st_size)

    def _enter(self, attempt: Attempt, phase: Phase) -> None:
        self._leave(attempt, None)
        attempt.phase, attempt.since, attempt.seconds = phase, time.time(), 0.0
        attempt.arena = largest_arena(attempt.pipeline, [self._attempts[job] for job in self._turns])
        self._report_memory()

    def _leave(self, attempt: Attempt, error: str | None) -> None:
        begin = attempt.begin
        self._send(
            PhaseEnded(
                job=begin.job,
                attempt=begin.attempt,
                model=begin.model,
                phase=attempt.phase,
                began=attempt.since,
                ended=time.time(),
                device_seconds=attempt.seconds,
                error=error,
            )
        )

    def _end(self, attempt: Attempt, error: str | None) -> None:
        """Drop an attempt, and free everything that it has."""
        job = attempt.begin.job
        del self._attempts[job]
        if attempt.events is None:
            self._waiting.remove(job)
            return
        try:
            attempt.events.close()
        except Exception:  # the attempt is dropped all the same
            log.exception("the end of a job failed")
        attempt.events = None
        self._turns.remove(job)
        self._leave(attempt, error)
        self._report_memory()

    def _send(self, message: FromWorker) -> None:
        self._connection.send_bytes(message.model_dump_json().encode())


def failure(begin: Begin, error: Exception) -> Failed:
    """Return the message about an error that ended an attempt, and log it."""
    if is_full(error):
        code, message = "storage", "the video could not be stored, since the server's disk is full; try again later"
        log.error("the disk is full", exc_info=error)
    elif isinstance(error, AdaCacheError):
        code, message = type(error).__name__, str(error)
    elif isinstance(error, MemoryError):
        code, message = "MemoryError", "memory ran out; choose a smaller size or fewer seconds, or try again later"
    else:
        code, message = "internal", "internal error; the server's log says more"
        log.error("job failed with an unexpected error", exc_info=error)
    log.info("job failed", extra={"code": code, "reason": message})
    return Failed(job=begin.job, attempt=begin.attempt, code=code, message=message)


def free_nbytes(models: Models) -> int:
    """Return the memory that is free beside all weights, of the machine where the device does not say, in bytes."""
    known = [pipeline.free_nbytes() for pipeline in models.values()]
    found = [nbytes for nbytes in known if nbytes is not None]
    return min(found) if found else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
