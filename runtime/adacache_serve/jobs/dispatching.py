"""The assignment of jobs to workers, and the consequences of what workers report."""

import logging
import threading
import time
from collections import deque
from collections.abc import Collection
from pathlib import Path

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
    PhaseEnded,
    Ready,
    Turn,
)
from adacache_serve.device.process import Open
from adacache_serve.device.supervisor import SupervisedWorker
from adacache_serve.disk.spool import Spool
from adacache_serve.jobs.metrics import Metrics
from adacache_serve.jobs.progress import Progress, numbers
from adacache_serve.jobs.publishing import Ended, Publisher
from adacache_serve.jobs.store import Job, Store
from adacache_serve.jobs.tracing import Tracer
from adacache_serve.orders.schema import ENDED
from adacache_serve.settings import Settings

log = logging.getLogger(__name__)
REMEMBERED = 20  # recent jobs from whose durations waiting times are estimated


class Dispatcher:
    """The workers and the jobs that they have. Any thread may call it.

    A job that is in progress is assigned to a worker here, or is with the publisher. When a worker, a server or the
    database fails at the wrong moment, it may be neither; :meth:`reconcile` finds such jobs.

    Attributes:
        workers: the workers, one for each device.
        paused: whether workers get no more jobs.
    """

    def __init__(
        self,
        settings: Settings,
        models: Collection[str],
        store: Store,
        spool: Spool,
        images: Path,
        publisher: Publisher,
        metrics: Metrics,
        tracer: Tracer,
        ended: Ended,
        open_models: Open,
    ) -> None:
        self._settings, self._models, self._store, self._spool = settings, models, store, spool
        self._images, self._publisher, self._ended = images, publisher, ended
        self._metrics, self._tracer = metrics, tracer
        self.workers = [
            SupervisedWorker(settings, device, open_models, self._handle, self._died) for device in settings.devices
        ]
        self.paused = False
        self._lock = threading.RLock()
        self._assigned: dict[str, tuple[SupervisedWorker, Progress]] = {}
        self._turn: dict[SupervisedWorker, str] = {}  # the job whose step each worker makes, or made last
        self._took: deque[float] = deque(maxlen=REMEMBERED)  # seconds

    def __len__(self) -> int:
        """Return the number of jobs that workers have."""
        return len(self._assigned)

    def progress(self, name: str) -> Progress | None:
        """Return the progress of a job that a worker has; None for any other job."""
        assigned = self._assigned.get(name)
        return assigned[1] if assigned else None

    def start(self) -> None:
        """Continue what an earlier server left, and start the workers."""
        self.reconcile()
        for worker in self.workers:
            worker.start()

    def stop(self, ours: bool = True) -> None:
        """Stop the workers, and queue their unfinished jobs again.

        Args:
            ours: whether the database still belongs to this server; if not, no job is changed.
        """
        self.paused = True
        for worker in self.workers:
            worker.stop()
        with self._lock:
            left = {name: progress.attempt for name, (_, progress) in self._assigned.items()}
            self._assigned.clear()
            if ours:
                for name, attempt in left.items():
                    self._close(name, attempt)

    def dispatch(self) -> None:
        """Give waiting jobs to workers that have room, first to the worker with the fewest jobs."""
        with self._lock:
            while not self.paused and (worker := self._idlest()):
                job = self._store.claim()
                if job is None:
                    return
                if job.model in self._models:
                    if not self._assign(job, worker):
                        return
                elif self._store.fail(job.id, "model", f"model {job.model!r} is no longer served", job.attempts):
                    self._ended(job.id, "model")

    def release(self, name: str) -> None:
        """Tell the worker of a job that has ended to drop it; its place is free when the worker confirms that."""
        with self._lock:
            if name in self._assigned:
                self._assigned[name][0].send(Cancel(job=name))

    def reconcile(self) -> None:
        """Continue jobs that are in progress and that neither a worker nor the publisher has."""
        with self._lock:
            for job in self._store.in_progress():
                if job.id in self._assigned or job.id in self._publisher:
                    continue
                if job.made is not None:
                    self._publisher.add(job)
                else:
                    self._close(job.id, job.attempts)

    def end_hung(self) -> None:
        """Kill workers that have jobs and have reported nothing for too long."""
        with self._lock:
            for worker in {worker for worker, _ in self._assigned.values()}:
                since = max(progress.began for who, progress in self._assigned.values() if who is worker)
                if time.monotonic() - max(since, worker.heard) > self._settings.hang_seconds:
                    log.error("worker hangs and is killed", extra={"pid": worker.pid, "device": worker.device})
                    worker.kill()

    def seconds_per_job(self) -> float | None:
        """Estimate how often a place becomes free while all are taken, in seconds; None before the first job ended."""
        took = list(self._took)
        places = self._settings.places * max(1, sum(worker.ready for worker in self.workers))
        return sum(took) / len(took) / places if took else None

    def _assign(self, job: Job, worker: SupervisedWorker) -> bool:
        """Give a job to a worker; where the disk has no room, queue the job again and return False."""
        try:
            output = self._spool.begin(job.id, job.attempts)
        except OSError as error:
            log.exception("the folder for a video cannot be made", extra={"job": job.id}, exc_info=error)
            self._store.requeue(job.id, job.attempts)
            return False
        image = str(self._images / job.image) if job.image else None
        self._assigned[job.id] = worker, Progress(job.attempts)
        self._tracer.begun(job)
        log.info("job given to a worker", extra={"job": job.id, "attempt": job.attempts, "pid": worker.pid})
        worker.send(
            Begin(
                job=job.id,
                attempt=job.attempts,
                model=job.model,
                order=job.order,
                image=image,
                output=str(output),
            )
        )
        return True

    def _idlest(self) -> SupervisedWorker | None:
        counts = {worker: 0 for worker in self.workers if worker.ready}
        for worker, _ in self._assigned.values():
            if worker in counts:
                counts[worker] += 1
        free = [worker for worker, count in counts.items() if count < self._settings.places]
        return min(free, key=counts.__getitem__) if free else None

    def _handle(self, worker: SupervisedWorker, message: FromWorker) -> None:
        if isinstance(message, Ready):
            log.info("worker is ready", extra={"pid": message.pid, "device": worker.device})
            self.dispatch()
            return
        if isinstance(message, Memory):
            self._metrics.memory(worker, message)
            return
        with self._lock:
            who, progress = self._assigned.get(message.job, (None, None))
        if who is not worker or progress is None or progress.attempt != message.attempt:
            return  # this attempt is over
        match message:
            case Turn():
                self._turn[worker] = message.job
            case Called():
                progress.of = message.of
                progress.calls.append(message.call)
                self._metrics.called(message)
            case PhaseEnded():
                self._metrics.phase_ended(message)
                if job := self._store.get(message.job):
                    self._tracer.phase_ended(job, message)
            case Decoded():
                progress.frames, progress.frames_of = message.frames, message.of
            case Completed() | Failed() | Cancelled():
                self._over(message, progress)
            case Began():
                pass

    def _over(self, message: Completed | Failed | Cancelled, progress: Progress) -> None:
        name, attempt = message.job, message.attempt
        with self._lock:
            if isinstance(message, Failed):
                self._spool.drop(name, attempt)
                if self._store.fail(name, message.code, message.message, attempt):
                    self._ended(name, message.code)
            else:
                self._close(name, attempt)
            del self._assigned[name]
        job = self._store.get(name)
        if job is not None and job.image and job.status in ENDED:  # the worker has read it, or never will
            (self._images / job.image).unlink(missing_ok=True)
        self._took.append(time.monotonic() - progress.began)
        self.dispatch()

    def _died(self, worker: SupervisedWorker) -> None:
        """Keep what a dead worker had finished, and queue its other jobs again.

        The death counts against the job in whose step it happened.
        """
        self._metrics.died(worker)
        with self._lock:
            lost = {name: progress.attempt for name, (who, progress) in self._assigned.items() if who is worker}
            for name in lost:
                del self._assigned[name]
            turn = self._turn.pop(worker, None)
            blamed = {turn} if turn in lost else set(lost)
            for name, attempt in lost.items():
                self._close(name, attempt, died=name in blamed)
        self.dispatch()

    def _close(self, name: str, attempt: int, died: bool = False) -> None:
        """Publish or queue again the job of an attempt that no worker works at; do nothing where the job has ended."""
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
            message = f"the worker died {job.deaths + 1} times while it made this video; the server's log says more"
            if self._store.fail(name, "worker_died", message, attempt):
                self._ended(name, "worker_died")
            return
        self._store.requeue(name, attempt, died)
