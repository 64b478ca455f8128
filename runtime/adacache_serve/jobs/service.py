"""What happens to a job: queued, given to a worker, made, kept, deleted."""

import hashlib
import logging
import math
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from adacache_engines.bundle.files import Bundle
from adacache_runtime.media.video import Frames
from adacache_serve.device.supervisor import Worker
from adacache_serve.device.worker import Open
from adacache_serve.files import sync
from adacache_serve.jobs.dispatching import Dispatcher
from adacache_serve.jobs.housekeeping import Housekeeper
from adacache_serve.jobs.live import Live
from adacache_serve.jobs.metrics import Metrics
from adacache_serve.jobs.ownership import Ownership
from adacache_serve.jobs.publishing import Publisher
from adacache_serve.jobs.results import Results
from adacache_serve.jobs.store import Job, Store
from adacache_serve.jobs.tracing import open_tracer
from adacache_serve.keys import Client
from adacache_serve.orders import FieldError, check, with_seed
from adacache_serve.schema import CreateVideo
from adacache_serve.settings import Settings
from adacache_serve.spool import Spool
from adacache_serve.uploads import write_picture

log = logging.getLogger(__name__)
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 5, 3600  # that a client is told to wait: where nothing is known, and at most


class BusyError(Exception):
    """No more jobs may wait; says after how many seconds it is worth another try."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoppingError(BusyError):
    """The server takes no more jobs, and will be gone."""


class ConflictError(Exception):
    """The idempotency key is that of another request."""


class Service:
    """Any thread may call it.

    Attributes:
        settings: of the server.
        bundles: by the name of their model, the first is the default.
        store, results, metrics, tracer, spool, pictures, ownership, publisher, dispatcher: that it keeps.
        draining: takes no more jobs, and begins none.
        closing: those that ran have had their time; who still listens is to go.
        lost: the database is another server's by now.
    """

    def __init__(
        self, settings: Settings, bundles: Mapping[str, Bundle], store: Store, results: Results, open_models: Open
    ) -> None:
        """
        Raises:
            InputError: another server has the data folder or the database.
        """
        self.settings, self.bundles, self.store, self.results = settings, bundles, store, results
        self.ownership = Ownership(settings.data, store.engine)
        self.metrics, self.tracer = Metrics(store, lambda: self.workers), open_tracer()
        self.draining = self.closing = self.lost = False
        self.pictures = settings.data / "pictures"
        self.pictures.mkdir(parents=True, exist_ok=True)
        self.spool = Spool(settings.data / "spool")
        self.publisher = Publisher(store, results, self.spool, self._ended)
        self.dispatcher = Dispatcher(
            settings,
            bundles,
            store,
            self.spool,
            self.pictures,
            self.publisher,
            self.metrics,
            self.tracer,
            self._ended,
            open_models,
        )
        self._housekeeper = Housekeeper(self)
        self._lock = threading.Lock()  # between counting the jobs that wait and adding one
        self._stopped = False

    @property
    def workers(self) -> list[Worker]:
        return self.dispatcher.workers

    def begin(self) -> None:
        """Goes on with what an earlier server left, and begins the workers."""
        self.dispatcher.begin()
        self._housekeeper.begin()

    @property
    def ready(self) -> bool:
        """Some worker can make a video, and jobs are taken."""
        return not self.draining and any(worker.ready for worker in self.workers)

    def drain(self) -> None:
        """Takes no more jobs, and gives those that run their time."""
        self.draining = self.dispatcher.paused = True
        until = time.monotonic() + self.settings.drain_seconds
        while time.monotonic() < until and not self.lost and (len(self.dispatcher) or len(self.publisher)):
            time.sleep(0.05)
        self.closing = True

    def stop(self) -> None:
        """Ends at once. What is not made is queued; what is made and not kept yet, the next server keeps."""
        if self._stopped:
            return
        self._stopped = self.draining = self.closing = True
        self._housekeeper.stop()
        try:
            self.dispatcher.stop(ours=not self.lost)
        except SQLAlchemyError as error:  # the next server finds them in progress and nobody's
            log.exception("jobs could not be queued again", exc_info=error)
        self.publisher.stop()
        with suppress(SQLAlchemyError):
            self.ownership.release()
        self.store.close()
        self.tracer.close()

    def submit(
        self,
        order: CreateVideo,
        client: Client,
        picture: Frames | None = None,
        key: str | None = None,
        traceparent: str | None = None,
    ) -> tuple[Job, bool]:
        """Stores a job; gives it, and whether it is new: one of the same idempotency key is not. ``traceparent`` is the
        client's own, as W3C has it.

        Raises:
            FieldError: it is not possible; names the field.
            BusyError: too many wait, or the server stops.
            ConflictError: the idempotency key was that of another request.
        """
        fingerprint = hashlib.sha256(order.model_dump_json().encode()).hexdigest()
        if key is not None and (job := self.store.by_key(client.name, key)) is not None:
            return self._same(job, fingerprint), False
        if self.draining:
            raise StoppingError("the server stops and takes no more jobs", math.ceil(self.settings.drain_seconds) or 1)
        model = self._model(order)
        if order.priority > client.max_priority:
            raise FieldError("priority", f"priority {order.priority}: this API key has at most {client.max_priority}")
        check(order, self.bundles[model], self.settings, picture)
        name = f"video_{secrets.token_hex(16)}"
        file = self._keep_picture(name, picture)
        try:
            with self._lock:
                self._check_room(client)
                span = self.tracer.submitted(name, model, order, traceparent)
                job, new = self.store.add(
                    name, client.name, with_seed(order), model, fingerprint, key, file, order.priority, span
                )
        except BusyError:
            self._delete_picture(file)
            raise
        if not new:
            self._delete_picture(file)
            return self._same(job, fingerprint), False
        self.metrics.submitted.labels(model).inc()
        log.info("queued", extra={"job": name, "client": client.name, "model": model})
        with suppress(SQLAlchemyError):  # it is stored; housekeeping gives it to a worker
            self.dispatcher.dispatch()
        return job, True

    def live(self, name: str) -> Live | None:
        """Of a job that a worker has."""
        return self.dispatcher.live(name)

    def cancel(self, name: str) -> bool:
        """False where it has ended already."""
        if not self.store.cancel(name):
            return False
        self._ended(name)
        self.dispatcher.let_go(name)
        return True

    def expire(self) -> None:
        """Fails the jobs that should have been completed by now."""
        for job in self.store.overdue():
            if self.store.fail(job.id, "deadline", f"it was not completed within {job.order.deadline_seconds} seconds"):
                self._ended(job.id, "deadline")
                self.dispatcher.let_go(job.id)

    def delete_content(self, job: Job) -> None:
        """Of a job that has ended."""
        if job.content is not None and self.store.forget_content(job.id):
            self.results.delete(job.content)

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
            wait = self._retry_after(1 + self.store.ahead(client.name))
            raise BusyError(f"{own} jobs of yours wait already, which is the most", wait)
        if self.store.count("queued") >= self.settings.queue:
            raise BusyError(f"{self.settings.queue} jobs wait already, which is the most", self._retry_after(1))

    def _retry_after(self, jobs: int) -> int:
        """Seconds until so many of those that wait have been begun, by how long the last ones took."""
        each = self.dispatcher.seconds_a_job()
        return RETRY_SECONDS if each is None else max(1, min(LONGEST_RETRY_SECONDS, math.ceil(each * jobs)))

    def _ended(self, name: str, code: str = "", published: float | None = None) -> None:
        job = self.store.get(name)
        assert job is not None
        if self.live(name) is None:  # else the worker may be about to read it
            self._delete_picture(job.picture)
        self.metrics.ended(job, code)
        self.tracer.ended(job, code, published)
        log.info(job.status, extra={"job": name, "attempt": job.attempts, "code": code or None})

    def _keep_picture(self, name: str, picture: Frames | None) -> str | None:
        if picture is None:
            return None
        file = f"{name}.npy"
        write_picture(self.pictures / file, picture)
        sync(self.pictures / file)
        sync(self.pictures)
        return file

    def _delete_picture(self, file: str | None) -> None:
        if file:
            (self.pictures / file).unlink(missing_ok=True)
