"""The life of a job: it is stored, given to a worker, made, kept, and deleted."""

import hashlib
import logging
import math
import secrets
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from adacache_engines.bundle.files import Bundle
from adacache_serve.device.process import Open
from adacache_serve.device.supervisor import SupervisedWorker
from adacache_serve.disk.spool import Spool
from adacache_serve.jobs.clock import JumpWatch
from adacache_serve.jobs.databases import reason
from adacache_serve.jobs.dispatching import Dispatcher
from adacache_serve.jobs.housekeeping import Housekeeper
from adacache_serve.jobs.metrics import Metrics
from adacache_serve.jobs.ownership import Ownership
from adacache_serve.jobs.progress import Progress
from adacache_serve.jobs.publishing import Publisher
from adacache_serve.jobs.results import Results
from adacache_serve.jobs.retention import Retention
from adacache_serve.jobs.store import Job, Store
from adacache_serve.jobs.tracing import open_tracer
from adacache_serve.keys import Client
from adacache_serve.orders.check import FieldError, check, with_seed
from adacache_serve.orders.images import image_of_order, write_image
from adacache_serve.orders.schema import CreateVideo
from adacache_serve.settings import Settings

log = logging.getLogger(__name__)
WATCH_SECONDS, RETAIN_SECONDS, SWEEP_SECONDS = 1.0, 10.0, 3600.0  # periods of housekeeping
# what a refused client is told to wait: while nothing is known of how long jobs take, and at most
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 5, 3600


class BusyError(Exception):
    """The queue is full.

    Attributes:
        retry_after: seconds after which another try is worth while.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoppingError(BusyError):
    """The server is stopping and accepts no more jobs."""


class ConflictError(Exception):
    """The idempotency key belongs to a different request."""


class Service:
    """The jobs of one server. Any thread may call it.

    Attributes:
        settings: the server's settings.
        bundles: the bundles that are served, by the name of their model; the first is the default.
        store: the database of jobs.
        results: the place where finished videos are kept.
        ownership: the locks on the data folder and the database.
        metrics: the numbers for Prometheus.
        tracer: the traces for OpenTelemetry.
        spool: the folder in which videos are made.
        images: the folder of the images that clients sent.
        retention: the rules by which results and jobs are deleted.
        publisher: the threads that put finished videos among the results.
        dispatcher: the workers and the jobs that they have.
        draining: whether no more jobs are accepted or given to workers.
        closing: whether the time for running jobs is over, so that streams of events end.
        lost: whether another server has taken over the database.
    """

    def __init__(
        self, settings: Settings, bundles: Mapping[str, Bundle], store: Store, results: Results, open_models: Open
    ) -> None:
        """Lock the data folder and the database.

        Raises:
            InputError: another server uses the data folder or the database.
        """
        self.settings, self.bundles, self.store, self.results = settings, bundles, store, results
        self.ownership = Ownership(settings.data, store.engine)
        self.metrics, self.tracer = Metrics(store, lambda: self.workers), open_tracer()
        self.draining = self.closing = self.lost = False
        self.images = settings.data / "images"
        self.images.mkdir(parents=True, exist_ok=True)
        self.spool = Spool(settings.data / "spool")
        self.retention = Retention(settings, store, results, self.spool, self.images)
        self.publisher = Publisher(store, results, self.spool, self._ended, settings.attempts)
        self.dispatcher = Dispatcher(
            settings,
            bundles,
            store,
            self.spool,
            self.images,
            self.publisher,
            self.metrics,
            self.tracer,
            self._ended,
            open_models,
        )
        dispatcher, retention = self.dispatcher, self.retention
        duties = (
            self._check_ownership,
            self.expire,
            dispatcher.end_hung,
            dispatcher.reconcile,
            dispatcher.dispatch,
            JumpWatch().look,
        )
        # a store of results that does not answer must not keep jobs waiting, so its duties have a thread of their own
        self._housekeeper = Housekeeper(
            dict.fromkeys(duties, WATCH_SECONDS),
            {retention.retain: RETAIN_SECONDS, retention.forget: RETAIN_SECONDS, retention.sweep: SWEEP_SECONDS},
        )
        self._lock = threading.Lock()  # between counting the jobs that wait and adding one
        self._stopped = False

    @property
    def workers(self) -> list[SupervisedWorker]:
        """The workers, one for each device."""
        return self.dispatcher.workers

    def start(self) -> None:
        """Continue what an earlier server left, and start the workers."""
        self.dispatcher.start()
        self._housekeeper.start()

    @property
    def ready(self) -> bool:
        """Whether jobs are accepted and at least one worker can make videos."""
        return self.why_not_ready() is None

    def why_not_ready(self) -> str | None:
        """Return why the server cannot accept or make videos now, as the end of a sentence about it; None = it can."""
        if self.draining:
            return "is stopping"
        try:
            self.store.check()
        except SQLAlchemyError as error:
            log.error("the server is not ready, since its database does not answer: %s", reason(error))
            return "cannot use its database; its log says why"
        return None if any(worker.ready for worker in self.workers) else "is still making its warm-up videos"

    def drain(self) -> None:
        """Accept no more jobs, and wait for those that run, as long as the settings allow."""
        self.draining = self.dispatcher.paused = True
        until = time.monotonic() + self.settings.drain_seconds
        while time.monotonic() < until and not self.lost and (len(self.dispatcher) or len(self.publisher)):
            time.sleep(0.05)
        self.closing = True

    def stop(self) -> None:
        """Stop at once. Unfinished jobs are queued again; the next server keeps what is made and not kept yet."""
        if self._stopped:
            return
        self._stopped = self.draining = self.closing = True
        self._housekeeper.stop()
        try:
            self.dispatcher.stop(ours=not self.lost)
        except SQLAlchemyError as error:  # the next server finds these jobs in progress without a worker
            log.error("jobs could not be queued again: %s", reason(error))
        self.publisher.stop()
        with suppress(SQLAlchemyError):
            self.ownership.release()
        self.store.close()
        self.tracer.close()

    def submit(
        self,
        order: CreateVideo,
        client: Client,
        key: str | None = None,
        traceparent: str | None = None,
        given_up: threading.Event | None = None,
    ) -> tuple[Job, bool]:
        """Check an order, decode its image, and store it as a job.

        Args:
            order: the client's order.
            client: the client.
            key: the client's idempotency key.
            traceparent: the client's trace context, as W3C defines it.
            given_up: set when the client waits for no answer any more; an image is not decoded any further then.

        Returns:
            The job, and whether it is new: a repeated idempotency key gives the job that it belongs to.

        Raises:
            FieldError: the order is not possible; names the field.
            BusyError: the queue is full, or the server is stopping.
            ConflictError: the idempotency key belongs to a different request.
            OSError: the image cannot be stored.
        """
        fingerprint = hashlib.sha256(order.model_dump_json().encode()).hexdigest()
        if key is not None and (job := self.store.by_key(client.name, key)) is not None:
            return self._same(job, fingerprint), False
        if self.draining:
            raise StoppingError(
                "the server is stopping and accepts no more jobs", math.ceil(self.settings.drain_seconds) or 1
            )
        model = self._model(order)
        if order.priority > client.max_priority:
            raise FieldError(
                "priority",
                f"priority {order.priority} is too high: this API key allows at most {client.max_priority}",
            )
        bundle = self.bundles[model]
        settled = check(order, bundle, self.settings, image=order.image is not None)
        name, file = f"video_{secrets.token_hex(16)}", None
        if order.image is not None:
            self._check_room(client)  # before the work
            file = f"{name}.npy"
            write_image(self.images / file, image_of_order(order.image, settled, bundle, given_up))
        try:
            with self._lock:
                self._check_room(client)
                span = self.tracer.submitted(name, model, order, traceparent)
                job, new = self.store.add(
                    name, client.name, with_seed(order), model, fingerprint, key, file, order.priority, span
                )
        except BusyError:
            self._delete_image(file)
            raise
        except SQLAlchemyError:
            # the job may be stored all the same; where the database does not say, a later sweep deletes the image
            with suppress(SQLAlchemyError):
                if self.store.get(name) is None:
                    self._delete_image(file)
            raise
        if not new:
            self._delete_image(file)
            return self._same(job, fingerprint), False
        self.metrics.submitted.labels(model).inc()
        log.info("job queued", extra={"job": name, "client": client.name, "model": model})
        with suppress(SQLAlchemyError):  # the job is stored, and housekeeping gives it to a worker later
            self.dispatcher.dispatch()
        return job, True

    def progress(self, name: str) -> Progress | None:
        """Return the progress of a job that a worker has; None for any other job."""
        return self.dispatcher.progress(name)

    def cancel(self, name: str) -> bool:
        """Cancel a job; return False where it has ended already."""
        if not self.store.cancel(name):
            return False
        self.dispatcher.release(name)  # first, since the rest may fail
        self._ended(name)
        return True

    def expire(self) -> None:
        """Fail the jobs whose deadline has passed."""
        for job in self.store.overdue():
            message = f"the job was not completed within {job.order.deadline_seconds} seconds"
            if self.store.fail(job.id, "deadline", message):
                self.dispatcher.release(job.id)
                self._ended(job.id, "deadline")

    def _check_ownership(self) -> None:
        if not self.lost and not self.ownership.still():
            log.critical("another server has taken over the database, so this one stops")
            self.lost = True
            signal.raise_signal(signal.SIGTERM)

    def _same(self, job: Job, fingerprint: str) -> Job:
        if job.fingerprint != fingerprint:
            raise ConflictError(f"this idempotency key belongs to a different request, which created {job.id}")
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
            raise BusyError(f"{own} of your jobs are waiting already, which is the limit; try again later", wait)
        if self.store.count("queued") >= self.settings.queue:
            raise BusyError(
                f"{self.settings.queue} jobs are waiting already, which is the limit; try again later",
                self._retry_after(1),
            )

    def _retry_after(self, jobs: int) -> int:
        """Estimate the seconds until this number of waiting jobs has been started, by how long recent jobs took."""
        each = self.dispatcher.seconds_per_job()
        return RETRY_SECONDS if each is None else max(1, min(LONGEST_RETRY_SECONDS, math.ceil(each * jobs)))

    def _ended(self, name: str, code: str = "", published: float | None = None) -> None:
        job = self.store.get(name)
        assert job is not None
        if self.progress(name) is None:  # else the worker may be about to read it
            self._delete_image(job.image)
        self.metrics.ended(job, code)
        self.tracer.ended(job, code, published)
        log.info(f"job {job.status}", extra={"job": name, "attempt": job.attempts, "code": code or None})

    def _delete_image(self, file: str | None) -> None:
        if file:
            (self.images / file).unlink(missing_ok=True)
