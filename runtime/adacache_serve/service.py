"""What happens to a job: queued, given to a worker, made, kept, deleted."""

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adacache_engines.bundle import Bundle
from adacache_runtime.video import Frames
from adacache_serve.keys import Client
from adacache_serve.live import Live, numbers
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
)
from adacache_serve.metrics import Metrics
from adacache_serve.orders import FieldError, check, with_seed
from adacache_serve.results import Results
from adacache_serve.schema import CreateVideo
from adacache_serve.settings import Settings
from adacache_serve.store import Job, Store
from adacache_serve.supervisor import Worker
from adacache_serve.uploads import write_picture
from adacache_serve.worker import Open

log = logging.getLogger(__name__)
HOUSEKEEPING = 1.0  # seconds
RETRY_SECONDS = 5  # that a client is told to wait for at least, where the queue is full


class BusyError(Exception):
    """No more jobs may wait; says after how many seconds it is worth another try."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ConflictError(Exception):
    """The idempotency key is that of another request."""


class Service:
    """Any thread may call it.

    Attributes:
        settings: of the server.
        bundles: by the name of their model, the first is the default.
        store, results, metrics: that it keeps.
        workers: one for each device.
    """

    def __init__(
        self, settings: Settings, bundles: Mapping[str, Bundle], store: Store, results: Results, open_models: Open
    ) -> None:
        self.settings, self.bundles, self.store, self.results = settings, bundles, store, results
        self.metrics = Metrics(self)
        self.draining = False
        self.workers = [Worker(settings, device, open_models, self._hear, self._died) for device in settings.devices]
        self._lock = threading.RLock()
        self._assigned: dict[str, tuple[Worker, Live]] = {}  # job -> who makes it
        self._rate = 0.0  # seconds between two jobs that end, smoothed
        self._last_end = time.monotonic()
        self._publisher = ThreadPoolExecutor(2, "publish")
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep_house, name="housekeeping", daemon=True)
        for folder in (self._spool, self._pictures):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def _spool(self) -> Path:
        return self.settings.data / "spool"

    @property
    def _pictures(self) -> Path:
        return self.settings.data / "pictures"

    def begin(self) -> None:
        """Goes on with what an earlier server left, and begins the workers."""
        for job in self.store.recover():
            self._publisher.submit(self._publish, job)
        for worker in self.workers:
            worker.begin()
        self._keeper.start()

    @property
    def ready(self) -> bool:
        """Some worker can make a video, and jobs are taken."""
        return not self.draining and any(worker.ready for worker in self.workers)

    def stop(self) -> None:
        """Takes no more jobs, gives those that run their time, and ends. What is not completed then, is queued."""
        self.draining = True
        until = time.monotonic() + self.settings.drain_seconds
        while time.monotonic() < until and self._assigned:
            time.sleep(0.05)
        self._stopping.set()
        for worker in self.workers:
            worker.stop()
        if self._keeper.is_alive():
            self._keeper.join()
        self._publisher.shutdown()
        self.store.recover()
        self.store.close()

    def submit(
        self, order: CreateVideo, client: Client, picture: Frames | None = None, key: str | None = None
    ) -> tuple[Job, bool]:
        """Stores a job; gives it, and whether it is new: one of the same idempotency key is not.

        Raises:
            FieldError: it is not possible; names the field.
            BusyError: too many wait.
            ConflictError: the idempotency key was that of another request.
        """
        fingerprint = hashlib.sha256(order.model_dump_json().encode()).hexdigest()
        if key is not None and (job := self.store.by_key(client.name, key)) is not None:
            return self._same(job, fingerprint), False
        model = self._model(order)
        if order.priority > client.max_priority:
            raise FieldError("priority", f"priority {order.priority}: this API key has at most {client.max_priority}")
        check(order, self.bundles[model], self.settings, picture)
        name = f"video_{secrets.token_hex(16)}"
        file = None
        if picture is not None:
            file = f"{name}.npy"
            write_picture(self._pictures / file, picture)
        with self._lock:
            self._check_room(client)
            job, new = self.store.add(
                name, client.name, with_seed(order), model, fingerprint, key, file, order.priority
            )
        if not new:
            self._delete_picture(file)
            return self._same(job, fingerprint), False
        self.metrics.submitted.labels(model).inc()
        log.info("queued", extra={"job": name, "client": client.name, "model": model})
        self._dispatch()
        return job, True

    def _same(self, job: Job, fingerprint: str) -> Job:
        if job.fingerprint != fingerprint:
            raise ConflictError(f"this idempotency key is that of another request, which made {job.id}")
        return job

    def _model(self, order: CreateVideo) -> str:
        if order.model is None:
            return next(iter(self.bundles))
        if order.model not in self.bundles:
            raise FieldError("model", f"model {order.model!r} is unknown; choose one of {', '.join(self.bundles)}")
        return order.model

    def _check_room(self, client: Client) -> None:
        own = min(client.queue or self.settings.queue_per_client, self.settings.queue_per_client)
        if self.store.count("queued", client=client.name) >= own:
            raise BusyError(f"{own} jobs of yours wait already, which is the most", self._retry_after(own))
        if self.store.count("queued") >= self.settings.queue:
            raise BusyError(
                f"{self.settings.queue} jobs wait already, which is the most", self._retry_after(self.settings.queue)
            )

    def _retry_after(self, waiting: int) -> int:
        """Seconds until a tenth of what waits has probably been made."""
        return max(RETRY_SECONDS, min(3600, round(self._rate * waiting / 10)))

    def live(self, name: str) -> Live | None:
        """Of a job that a worker has."""
        assigned = self._assigned.get(name)
        return assigned[1] if assigned else None

    def cancel(self, name: str) -> bool:
        """False where it has ended already."""
        if not self.store.cancel(name):
            return False
        with self._lock:
            assigned = self._assigned.get(name)
        if assigned:
            assigned[0].send(Cancel(job=name))  # its place is free when the worker says so
        self._ended(name, "cancelled")
        return True

    def delete_content(self, name: str, content: str) -> None:
        """Of a job that has ended."""
        if self.store.forget_content(name):
            self.results.delete(content)

    def _dispatch(self) -> None:
        """Gives waiting jobs to workers that have room, the one with fewest first."""
        with self._lock:
            while not self.draining and (worker := self._idlest()):
                job = self.store.claim()
                if job is None:
                    return
                self._assigned[job.id] = worker, Live(job.attempts)
                output = self._spool / f"{job.id}-{job.attempts}"
                picture = str(self._pictures / job.picture) if job.picture else None
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

    def _idlest(self) -> Worker | None:
        counts = {worker: 0 for worker in self.workers if worker.ready}
        for worker, _ in self._assigned.values():
            if worker in counts:
                counts[worker] += 1
        free = [worker for worker, count in counts.items() if count < self.settings.in_flight]
        return min(free, key=counts.__getitem__) if free else None

    def _hear(self, worker: Worker, message: FromWorker) -> None:
        if isinstance(message, Ready):
            log.info("worker is ready", extra={"pid": message.pid, "device": worker.device})
            self._dispatch()
            return
        with self._lock:
            assigned = self._assigned.get(message.job)
        if assigned is None or assigned[0] is not worker or assigned[1].attempt != message.attempt:
            return  # of an attempt that is over
        live = assigned[1]
        if isinstance(message, Began):
            return
        if isinstance(message, Called):
            live.of = message.of
            live.calls.append(message.call)
            self.metrics.called(message)
            return
        if isinstance(message, Decoded):
            live.frames, live.frames_of = message.frames, message.of
            return
        if isinstance(message, Completed):
            self._made(message, live)
        elif isinstance(message, Failed) and self.store.fail(
            message.job, message.code, message.message, message.attempt
        ):
            self._ended(message.job, "failed", message.code)
        assert isinstance(message, Completed | Failed | Cancelled)
        self._release(message.job)
        self._dispatch()

    def _made(self, message: Completed, live: Live) -> None:
        trace = numbers(live.calls, live.of)
        if self.store.made(message.job, message.attempt, message.file, message.nbytes, trace, live.calls):
            job = self.store.get(message.job)
            assert job is not None
            self._publisher.submit(self._publish, job)
        else:
            (self._spool / message.file).unlink(missing_ok=True)

    def _publish(self, job: Job) -> None:
        """What was made becomes a result."""
        assert job.made is not None
        content = f"{job.id}{Path(job.made).suffix}"
        try:
            spooled = self._spool / job.made
            if spooled.exists():  # else it was put there before the server stopped
                self.results.put(spooled, content)
        except Exception as error:
            log.exception("a result could not be kept", extra={"job": job.id}, exc_info=error)
            if self.store.fail(
                job.id, "storage", "the video was made and could not be kept; the server's log says why"
            ):
                self._ended(job.id, "failed", "storage")
            return
        if self.store.complete(job.id, content):
            self._ended(job.id, "completed")
        else:
            self.results.delete(content)

    def _ended(self, name: str, status: str, code: str = "") -> None:
        job = self.store.get(name)
        assert job is not None
        self._delete_picture(job.picture)
        self.metrics.ended(job, code)
        now = time.monotonic()
        self._rate, self._last_end = 0.8 * self._rate + 0.2 * (now - self._last_end), now
        log.info(status, extra={"job": name, "attempt": job.attempts, "code": code or None})

    def _delete_picture(self, file: str | None) -> None:
        if file:
            (self._pictures / file).unlink(missing_ok=True)

    def _release(self, name: str) -> None:
        with self._lock:
            self._assigned.pop(name, None)

    def _died(self, worker: Worker) -> None:
        """Its jobs are made again, if they have not been begun too often."""
        with self._lock:
            names = [name for name, (who, _) in self._assigned.items() if who is worker]
        for name in names:
            live = self.live(name)
            assert live is not None
            if live.attempt < self.settings.attempts:
                self.store.requeue(name, live.attempt)
            elif self.store.fail(
                name, "worker_died", f"its worker died {live.attempt} times; the server's log says more", live.attempt
            ):
                self._ended(name, "failed", "worker_died")
            self._release(name)
            for left in self._spool.glob(f"*{name}-{live.attempt}*"):
                left.unlink(missing_ok=True)
        self.metrics.deaths.inc()
        self._dispatch()

    def _keep_house(self) -> None:
        while not self._stopping.wait(HOUSEKEEPING):
            self._clean()

    def _clean(self) -> None:
        try:
            self._expire()
            self._retain()
            self._dispatch()
        except Exception as error:  # the next round does not depend on this one
            log.exception("housekeeping failed", exc_info=error)

    def _expire(self) -> None:
        for job in self.store.overdue():
            if self.store.fail(job.id, "deadline", f"it was not completed within {job.order.deadline_seconds} seconds"):
                with self._lock:
                    assigned = self._assigned.get(job.id)
                if assigned:
                    assigned[0].send(Cancel(job=job.id))
                self._ended(job.id, "failed", "deadline")

    def _retain(self) -> None:
        """Deletes results that are too old, and the oldest of too much."""
        if self.settings.keep_seconds is None and self.settings.keep_nbytes is None:
            return
        kept = self.store.with_content()
        total = sum(job.nbytes or 0 for job in kept)
        for job in kept:
            old = self.settings.keep_seconds is not None and time.time() - (job.ended or 0) > self.settings.keep_seconds
            much = self.settings.keep_nbytes is not None and total > self.settings.keep_nbytes
            if not (old or much):
                return
            assert job.content is not None
            self.delete_content(job.id, job.content)
            total -= job.nbytes or 0
