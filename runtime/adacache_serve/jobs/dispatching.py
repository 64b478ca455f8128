"""The assignment of jobs to workers, and the consequences of what workers report."""

import logging
import threading
import time
from collections import deque
from collections.abc import Collection
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

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
from adacache_serve.jobs.databases import reason
from adacache_serve.jobs.endings import Assigned, Endings, Lost
from adacache_serve.jobs.metrics import Metrics
from adacache_serve.jobs.progress import Progress
from adacache_serve.jobs.publishing import Ended, Publisher
from adacache_serve.jobs.store import Job, Store
from adacache_serve.jobs.tracing import Tracer
from adacache_serve.settings import Settings

log = logging.getLogger(__name__)
REMEMBERED = 20  # recent jobs from whose durations waiting times are estimated


class Dispatcher:
    """The workers and the jobs that they have. Any thread may call it.

    A job that is in progress is assigned to a worker here, or is with the publisher. When a server or the database
    fails at the wrong moment, it may be neither; :meth:`reconcile` finds such jobs. No error of the database ends a
    worker: the end of an attempt that cannot be recorded now is kept, and :meth:`reconcile` records it.

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
        self._endings = Endings(settings, store, spool, images, publisher, ended)
        self._metrics, self._tracer = metrics, tracer
        self.workers = [
            SupervisedWorker(settings, device, open_models, self._handle, self._died) for device in settings.devices
        ]
        self.paused = False
        self._lock = threading.RLock()
        self._assigned: dict[str, Assigned] = {}
        self._turn: dict[SupervisedWorker, str] = {}  # the job that each worker works at, or worked at last
        self._took: deque[float] = deque(maxlen=REMEMBERED)  # seconds

    def __len__(self) -> int:
        """Return the number of jobs that workers have."""
        return len(self._assigned)

    def progress(self, name: str) -> Progress | None:
        """Return the progress of a job that a worker has; None for any other job."""
        assigned = self._assigned.get(name)
        return assigned.progress if assigned else None

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
            left = list(self._assigned.values())
            self._assigned.clear()
            if ours:
                for assigned in left:
                    self._endings.record(assigned, assigned.end or Lost())

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
            assigned = self._assigned.get(name)
            if assigned is not None and assigned.worker is not None:
                assigned.worker.send(Cancel(job=name))

    def reconcile(self) -> None:
        """Record the ends that the database has not taken yet, and continue jobs in progress that nobody has."""
        with self._lock:
            for assigned in list(self._assigned.values()):
                self._settle(assigned)
            for job in self._store.in_progress():
                if job.id in self._assigned or job.id in self._publisher:
                    continue
                if job.made is not None:
                    self._publisher.add(job)
                else:
                    self._assigned[job.id] = lost = Assigned(job, None, Progress(job.attempts), end=Lost())
                    self._settle(lost)

    def end_hung(self) -> None:
        """Kill workers that have jobs and have reported nothing for too long."""
        with self._lock:
            began: dict[SupervisedWorker, float] = {}
            for assigned in self._assigned.values():
                if assigned.worker is not None and assigned.end is None:
                    began[assigned.worker] = max(assigned.progress.began, began.get(assigned.worker, 0.0))
            for worker, since in began.items():
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
            self._store.put_back(job.id, job.attempts)
            return False
        image = str(self._images / job.image) if job.image else None
        self._assigned[job.id] = Assigned(job, worker, Progress(job.attempts))
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
        for assigned in self._assigned.values():
            if assigned.worker in counts:
                counts[assigned.worker] += 1
        free = [worker for worker, count in counts.items() if count < self._settings.places]
        return min(free, key=counts.__getitem__) if free else None

    def _handle(self, worker: SupervisedWorker, message: FromWorker) -> None:
        if isinstance(message, Ready):
            log.info("worker is ready", extra={"pid": message.pid, "device": worker.device})
            self._dispatch_now()
            return
        if isinstance(message, Memory):
            self._metrics.memory(worker, message)
            return
        with self._lock:
            assigned = self._assigned.get(message.job)
        if assigned is None or assigned.worker is not worker or assigned.progress.attempt != message.attempt:
            return  # this attempt is over
        progress = assigned.progress
        match message:
            case Turn():
                self._turn[worker] = message.job
            case Began():
                assigned.begun = True
            case Called():
                progress.of = message.of
                progress.calls.append(message.call)
                self._metrics.called(message)
            case PhaseEnded():
                self._metrics.phase_ended(message)
                self._tracer.phase_ended(assigned.job, message)
            case Decoded():
                progress.frames, progress.frames_of = message.frames, message.of
            case Completed() | Failed() | Cancelled():
                with self._lock:
                    self._took.append(time.monotonic() - progress.began)
                    assigned.end = message
                    self._settle(assigned)
                self._dispatch_now()

    def _died(self, worker: SupervisedWorker) -> None:
        """Keep what a dead worker had finished, and queue its other jobs again.

        The death counts against the job that the worker worked at, and against no other.
        """
        self._metrics.died(worker)
        with self._lock:
            turn = self._turn.pop(worker, None)
            for name, assigned in list(self._assigned.items()):
                if assigned.worker is worker and assigned.end is None:
                    assigned.end = Lost(died=name == turn, begun=assigned.begun)
                    self._settle(assigned)
        self._dispatch_now()

    def _settle(self, assigned: Assigned) -> None:
        """Record the end of an attempt, if it has ended; the job stays assigned where the database does not take it."""
        if assigned.end is not None and self._endings.settle(assigned, assigned.end):
            del self._assigned[assigned.job.id]

    def _dispatch_now(self) -> None:
        """Give waiting jobs to workers; leave that to housekeeping where the database does not answer."""
        try:
            self.dispatch()
        except SQLAlchemyError as error:
            log.warning("jobs wait, since the database does not answer: %s", reason(error))
