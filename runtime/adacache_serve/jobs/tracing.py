"""Traces of jobs, for OpenTelemetry: of each the queue, the phases of its generations, and what became of it.

A span is made when what it describes is over, from times that are known then, so none is ever open: whatever dies, what
was sent before is whole. All of a job's are children of ``submit``, which is a child of the client's own span where
the request had a ``traceparent``; the job is stored with it, and so its trace goes on after a restart.

Configured by the environment, as OpenTelemetry has it: with ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or the same of traces
alone) or ``OTEL_TRACES_EXPORTER``, ``otlp`` or ``console``. Without these nothing of it is imported.
"""

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from adacache_engines.errors import InputError, require
from adacache_serve.jobs.store import Job
from adacache_serve.messages import PhaseEnded
from adacache_serve.schema import CreateVideo

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTER, DISABLED, HTTP = "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED", "http/protobuf"
SERVICE = "adacache-serve"


class Tracer(Protocol):
    """What a service tells; any thread may."""

    def submitted(self, name: str, model: str, order: CreateVideo, traceparent: str | None) -> str | None:
        """A job is about to be stored: gives what to store with it, by which all that follows is of its trace."""

    def begun(self, job: Job) -> None:
        """A worker gets it."""

    def phase_ended(self, job: Job, message: PhaseEnded) -> None:
        """Of one attempt."""

    def ended(self, job: Job, code: str, published: float | None = None) -> None:
        """It has; ``published``: when putting its video among the results began, seconds since 1970."""

    def close(self) -> None:
        """Sends what there is."""


class Untraced:
    """Where nothing is configured."""

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
    """Through the SDK of OpenTelemetry, in the background."""

    def __init__(self, exporter: "SpanExporter") -> None:
        """
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
        if job.attempts == 1 and job.started is not None:  # when it was queued again is not known
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
        """Times are seconds since 1970; gives the ``traceparent`` of what is caused by it."""
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
    """As it is configured.

    Raises:
        MissingDependencyError: it is, and OpenTelemetry is not installed; has the line that installs it.
        InputError: the exporter or its protocol is unknown here.
    """
    chosen = environment.get(EXPORTER, "otlp" if any(environment.get(name) for name in ENDPOINTS) else "none")
    if chosen in ("none", "") or environment.get(DISABLED, "").lower() == "true":
        return Untraced()
    if chosen == "console":
        return Traced(require("opentelemetry.sdk.trace.export", "otel").ConsoleSpanExporter())
    if chosen != "otlp":
        raise InputError(f"{EXPORTER}={chosen} is unknown here; choose otlp, console or none")
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), HTTP)
    if protocol != HTTP:
        raise InputError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is unknown here; choose {HTTP}")
    return Traced(require("opentelemetry.exporter.otlp.proto.http.trace_exporter", "otel").OTLPSpanExporter())
