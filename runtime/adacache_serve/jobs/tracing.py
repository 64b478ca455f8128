"""Traces of jobs for OpenTelemetry: the time in the queue, the phases of each generation, and the job's end.

A span is made when the work that it describes is over, from recorded times, so that no span is ever open and a process
that dies leaves none unfinished. All spans of a job are children of ``submit``, which is a child of the client's own
span where the request had a ``traceparent``. The trace context is stored with the job, so that its trace continues
after a restart.

OpenTelemetry's environment variables configure it: ``OTEL_EXPORTER_OTLP_ENDPOINT``,
``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``, or ``OTEL_TRACES_EXPORTER``, which is ``otlp`` or ``console``. Without them
OpenTelemetry is not imported.
"""

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from adacache_engines.errors import InputError, require
from adacache_serve.device.messages import PhaseEnded
from adacache_serve.jobs.store import Job
from adacache_serve.orders.schema import CreateVideo

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTER, DISABLED, HTTP = "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED", "http/protobuf"
SERVICE = "adacache-serve"


class Tracer(Protocol):
    """A recorder of spans. Any thread may call it."""

    def submitted(self, name: str, model: str, order: CreateVideo, traceparent: str | None) -> str | None:
        """Record that a job is about to be stored; return the trace context to store with it."""

    def begun(self, job: Job) -> None:
        """Record that a job is given to a worker."""

    def phase_ended(self, job: Job, message: PhaseEnded) -> None:
        """Record that a phase of an attempt has ended."""

    def ended(self, job: Job, code: str, published: float | None = None) -> None:
        """Record that a job has ended; see :class:`adacache_serve.jobs.publishing.Ended` for the arguments."""

    def close(self) -> None:
        """Send the spans that are not sent yet."""


class Untraced:
    """A tracer that records nothing, for servers without OpenTelemetry."""

    def submitted(self, name: str, model: str, order: CreateVideo, traceparent: str | None) -> None:
        return None

    def begun(self, job: Job) -> None:
        pass

    def phase_ended(self, job: Job, message: PhaseEnded) -> None:
        pass

    def ended(self, job: Job, code: str, published: float | None = None) -> None:
        pass

    def close(self) -> None:
        pass


class Traced:
    """A tracer that sends spans through OpenTelemetry's SDK, in the background."""

    def __init__(self, exporter: "SpanExporter") -> None:
        """Set up the SDK.

        Raises:
            MissingDependencyError: the SDK is not installed.
        """
        require("opentelemetry.sdk", "otel")
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        self._provider = TracerProvider(resource=Resource.create({} if named else {"service.name": SERVICE}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("adacache_serve")
        self._propagator, self._trace = TraceContextTextMapPropagator(), trace

    def submitted(self, name: str, model: str, order: CreateVideo, traceparent: str | None) -> str | None:
        now = time.time()
        asked = {key: getattr(order, key) for key in ("size", "seconds", "frames", "steps", "policy", "priority")}
        return self._span("submit", traceparent, now, now, {"job": name, "model": model, **asked})

    def begun(self, job: Job) -> None:
        if (
            job.attempts == 1 and job.started is not None
        ):  # the time at which a later attempt was queued is not recorded
            self._span("queued", job.traceparent, job.created, job.started, self._of(job))

    def phase_ended(self, job: Job, message: PhaseEnded) -> None:
        known = {**self._of(job), "attempt": message.attempt, "device_seconds": message.device_seconds}
        self._span(message.phase, job.traceparent, message.began, message.ended, known, message.error)

    def ended(self, job: Job, code: str, published: float | None = None) -> None:
        at = job.ended if job.ended is not None else time.time()
        trace = {key: value for key, value in (job.trace or {}).items() if isinstance(value, int | float)}
        known = {**self._of(job), "attempt": job.attempts, "nbytes": job.nbytes, **trace}
        name = "publish" if published is not None else job.status
        self._span(name, job.traceparent, published or at, at, known, code or None)

    def close(self) -> None:
        self._provider.shutdown()

    def _of(self, job: Job) -> dict[str, Any]:
        return {"job": job.id, "model": job.model}

    def _span(
        self,
        name: str,
        parent: str | None,
        began: float,
        ended: float,
        attributes: Mapping[str, Any],
        error: str | None = None,
    ) -> str | None:
        """Send a span whose times are in seconds since 1970; return its ``traceparent``, for its children."""
        nanoseconds = 10**9
        span = self._tracer.start_span(
            name,
            self._propagator.extract({"traceparent": parent} if parent else {}),
            attributes={f"adacache.{key}": value for key, value in attributes.items() if value is not None},
            start_time=round(began * nanoseconds),
        )
        if error:
            span.set_status(self._trace.StatusCode.ERROR, error)
        span.end(round(max(began, ended) * nanoseconds))
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._trace.set_span_in_context(span))
        return carrier.get("traceparent")


def open_tracer(environment: Mapping[str, str] = os.environ) -> Tracer:
    """Open the tracer that the environment configures.

    Raises:
        MissingDependencyError: a tracer is configured and OpenTelemetry is not installed.
        InputError: the exporter or its protocol is not supported.
    """
    chosen = environment.get(EXPORTER, "otlp" if any(environment.get(name) for name in ENDPOINTS) else "none")
    if chosen in ("none", "") or environment.get(DISABLED, "").lower() == "true":
        return Untraced()
    if chosen == "console":
        return Traced(require("opentelemetry.sdk.trace.export", "otel").ConsoleSpanExporter())
    if chosen != "otlp":
        raise InputError(f"{EXPORTER}={chosen} is not supported; choose otlp, console or none")
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), HTTP)
    if protocol != HTTP:
        raise InputError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not supported; choose {HTTP}")
    return Traced(require("opentelemetry.exporter.otlp.proto.http.trace_exporter", "otel").OTLPSpanExporter())
