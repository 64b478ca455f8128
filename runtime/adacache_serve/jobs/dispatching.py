"""Which worker has which job, and what comes of it."""

import logging
import threading
import time
from collections import deque
from collections.abc import Collection
from pathlib import Path

from adacache_serve.device.supervisor import Worker
from adacache_serve.device.worker import Open
from adacache_serve.jobs.live import Live, numbers
from adacache_serve.jobs.metrics import Metrics
from adacache_serve.jobs.publishing import Ended, Publisher
from adacache_serve.jobs.store import Job, Store
from adacache_serve.jobs.tracing import Tracer
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
    Memory,
    PhaseEnded,
    Ready,
    Turn,
)
from adacache_serve.schema import ENDED
from adacache_serve.settings import Settings
from adacache_serve.spool import Spool

log = logging.getLogger(__name__)
REMEMBERED = 20  # jobs, for how long one takes


class Dispatcher:
    """Any thread may call it.

    A job that is in progress is here, or with the publisher, or is nobody's; those that are nobody's, because a worker,
    a server or the database failed at the wrong moment, are found by :meth:`reconcile`.

    Attributes:
        workers: one for each device.
        paused: gives no more jobs to workers.
    """

    def __init__(
        self,
        settings: Settings,
        models: Collection[str],
        store: Store,
        spool: Spool,
        pictures: Path,
        publisher: Publisher,
        metrics: Metrics,
        tracer: Tracer,
        ended: Ended,
        open_models: Open,
    ) -> None:
        self._settings, self._models, self._store, self._spool = settings, models, store, spool
        self._pictures, self._publisher, self._ended = pictures, publisher, ended
        self._metrics, self._tracer = metrics, tracer
        self.workers = [Worker(settings, device, open_models, self._hear, self._died) for device in settings.devices]
        self.paused = False
        self._lock = threading.RLock()
        self._assigned: dict[str, tuple[Worker, Live]] = {}
        self._turn: dict[Worker, str] = {}  # whose step a worker makes, or made last
        self._took: deque[float] = deque(maxlen=REMEMBERED)  # seconds, of those that ended last

    def __len__(self) -> int:
        """Jobs that workers have."""
        return len(self._assigned)

    def live(self, name: str) -> Live | None:
        """Of a job that a worker has."""
        assigned = self._assigned.get(name)
        return assigned[1] if assigned else None

    def begin(self) -> None:
        """Goes on with what an earlier server left, and begins the workers."""
        self.reconcile()
        for worker in self.workers:
            worker.begin()

    def stop(self, ours: bool = True) -> None:
        """Ends the workers; what they had not made is queued, if the jobs are still ``ours`` to queue."""
        self.paused = True
        for worker in self.workers:
            worker.stop()
        with self._lock:
            left = {name: live.attempt for name, (_, live) in self._assigned.items()}
            self._assigned.clear()
            if ours:
                for name, attempt in left.items():
                    self._settle(name, attempt)

    def dispatch(self) -> None:
        """Gives waiting jobs to workers that have room, the one with fewest first."""
        with self._lock:
            while not self.paused and (worker := self._idlest()):
                job = self._store.claim()
                if job is None:
                    return
                if job.model in self._models:
                    if not self._give(job, worker):
                        return
                elif self._store.fail(job.id, "model", f"model {job.model!r} is not served any more", job.attempts):
                    self._ended(job.id, "model")

    def let_go(self, name: str) -> None:
        """Of a job that has ended: its place is free when its worker says so."""
        with self._lock:
            if name in self._assigned:
                self._assigned[name][0].send(Cancel(job=name))

    def reconcile(self) -> None:
        """Goes on with jobs that are in progress and nobody's."""
        with self._lock:
            for job in self._store.in_progress():
                if job.id in self._assigned or job.id in self._publisher:
                    continue
                if job.made is not None:
                    self._publisher.add(job)
                else:
                    self._settle(job.id, job.attempts)

    def end_hung(self) -> None:
        """Kills workers of which nothing has been heard for too long, though they have something to do."""
        with self._lock:
            for worker in {worker for worker, _ in self._assigned.values()}:
                since = max(live.began for who, live in self._assigned.values() if who is worker)
                if time.monotonic() - max(since, worker.heard) > self._settings.hang_seconds:
                    log.error("a worker hangs, and is killed", extra={"pid": worker.pid, "device": worker.device})
                    worker.kill()

    def seconds_a_job(self) -> float | None:
        """How often a place becomes free while all are taken; None = nothing has been made yet."""
        took = list(self._took)
        places = self._settings.in_flight * max(1, sum(worker.ready for worker in self.workers))
        return sum(took) / len(took) / places if took else None

    def _give(self, job: Job, worker: Worker) -> bool:
        """False where there is no room on the disk; the job is queued again."""
        try:
            output = self._spool.begin(job.id, job.attempts)
        except OSError as error:
            log.exception("no place to make a video", extra={"job": job.id}, exc_info=error)
            self._store.requeue(job.id, job.attempts)
            return False
        picture = str(self._pictures / job.picture) if job.picture else None
        self._assigned[job.id] = worker, Live(job.attempts)
        self._tracer.begun(job)
        log.info("given to a worker", extra={"job": job.id, "attempt": job.attempts, "pid": worker.pid})
        worker.send(
            Begin(
                job=job.id,
                attempt=job.attempts,
                model=job.model,
                order=job.order,
                picture=picture,
                output=str(output),
            )
        )
        return True

    def _idlest(self) -> Worker | None:
        counts = {worker: 0 for worker in self.workers if worker.ready}
        for worker, _ in self._assigned.values():
            if worker in counts:
                counts[worker] += 1
        free = [worker for worker, count in counts.items() if count < self._settings.in_flight]
        return min(free, key=counts.__getitem__) if free else None

    def _hear(self, worker: Worker, message: FromWorker) -> None:
        if isinstance(message, Ready):
            log.info("worker is ready", extra={"pid": message.pid, "device": worker.device})
            self.dispatch()
            return
        if isinstance(message, Memory):
            self._metrics.memory(worker, message)
            return
        with self._lock:
            who, live = self._assigned.get(message.job, (None, None))
        if who is not worker or live is None or live.attempt != message.attempt:
            return  # of an attempt that is over
        match message:
            case Turn():
                self._turn[worker] = message.job
            case Called():
                live.of = message.of
                live.calls.append(message.call)
                self._metrics.called(message)
            case PhaseEnded():
                self._metrics.phase_ended(message)
                if job := self._store.get(message.job):
                    self._tracer.phase_ended(job, message)
            case Decoded():
                live.frames, live.frames_of = message.frames, message.of
            case Completed() | Failed() | Cancelled():
                self._over(message, live)
            case Began():
                pass

    def _over(self, message: Completed | Failed | Cancelled, live: Live) -> None:
        name, attempt = message.job, message.attempt
        with self._lock:
            if isinstance(message, Failed):
                self._spool.drop(name, attempt)
                if self._store.fail(name, message.code, message.message, attempt):
                    self._ended(name, message.code)
            else:
                self._settle(name, attempt)
            del self._assigned[name]
        job = self._store.get(name)
        if job is not None and job.picture and job.status in ENDED:  # the worker has read it, or never will
            (self._pictures / job.picture).unlink(missing_ok=True)
        self._took.append(time.monotonic() - live.began)
        self.dispatch()

    def _died(self, worker: Worker) -> None:
        """What it had made is taken over, the rest is made again; its death is held against whose step it was."""
        self._metrics.died(worker)
        with self._lock:
            lost = {name: live.attempt for name, (who, live) in self._assigned.items() if who is worker}
            for name in lost:
                del self._assigned[name]
            turn = self._turn.pop(worker, None)
            blamed = {turn} if turn in lost else set(lost)
            for name, attempt in lost.items():
                self._settle(name, attempt, died=name in blamed)
        self.dispatch()

    def _settle(self, name: str, attempt: int, died: bool = False) -> None:
        """Of an attempt that nobody works at any more; nothing, where the job has ended."""
        if record := self._spool.record(name, attempt):
            trace = numbers(record.calls, record.of)
            if self._store.made(name, attempt, record.file, record.nbytes, trace, record.calls):
                job = self._store.get(name)
                assert job is not None
                self._publisher.add(job)
                return
        self._spool.drop(name, attempt)
        job = self._store.get(name)
        if died and job is not None and job.deaths + 1 >= self._settings.attempts:
            message = f"its worker died {job.deaths + 1} times while it made this; the server's log says more"
            if self._store.fail(name, "worker_died", message, attempt):
                self._ended(name, "worker_died")
            return
        self._store.requeue(name, attempt, died)
