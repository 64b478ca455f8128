"""What Prometheus reads."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from adacache_serve.messages import Called
from adacache_serve.store import Job

if TYPE_CHECKING:
    from adacache_serve.service import Service

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
DISTANCES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.24, 0.32, 0.40, 0.6, 1, 2)
MEGABYTE = 10**6


class Metrics:
    """Of one service; nothing is global, so that several may live in a process."""

    def __init__(self, service: "Service") -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"adacache_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"adacache_{name}", text, labels, buckets=buckets, registry=self.registry)

        self.submitted = counter("jobs_submitted", "jobs that were stored", "model")
        self.done = counter("jobs_ended", "jobs that ended, by how", "model", "status")
        self.failures = counter("job_failures", "jobs that failed, by the kind of error", "model", "code")
        self.deaths = counter("worker_deaths", "worker processes that ended without being asked to")
        self.calls = counter("calls", "calls of the denoiser", "kind")
        self.waited = histogram("job_wait_seconds", "from stored to begun", SECONDS, "model")
        self.took = histogram("job_seconds", "from begun to completed", SECONDS, "model")
        self.call_seconds = histogram("call_seconds", "of a call of the denoiser", SECONDS, "kind")
        self.stage_seconds = histogram("stage_seconds", "inside engines, by part of a call", SECONDS, "part")
        self.distance = histogram("distance", "that policies measured", DISTANCES)
        self.memory = Gauge(
            "adacache_planned_memory_bytes",
            "of the generations in flight, when one last made a call",
            registry=self.registry,
        )
        self.registry.register(_Now(service))

    def called(self, message: Called) -> None:
        call = message.call
        kind = "computed" if call["computed"] else "cached"
        self.calls.labels(kind).inc()
        self.call_seconds.labels(kind).observe(call["wall_ms"] / 1000)
        for part, time_ms in call["engine_ms"].items():
            self.stage_seconds.labels(part).observe(time_ms / 1000)
        if call.get("distance") is not None:
            self.distance.observe(call["distance"])
        self.memory.set(message.memory)

    def ended(self, job: Job, code: str) -> None:
        self.done.labels(job.model, job.status).inc()
        if job.status == "failed":
            self.failures.labels(job.model, code).inc()
        if job.started is not None:
            self.waited.labels(job.model).observe(max(0.0, job.started - job.created))
            if job.status == "completed" and job.ended is not None:
                self.took.labels(job.model).observe(max(0.0, job.ended - job.started))

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self.registry)


class _Now(Collector):
    """What is read off the service when somebody asks."""

    def __init__(self, service: "Service") -> None:
        self._service = service

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing, so that registering does not ask."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        service = self._service
        jobs = GaugeMetricFamily("adacache_jobs", "jobs that have not ended", labels=["status"])
        jobs.add_metric(["queued"], service.store.count("queued"))
        jobs.add_metric(["in_progress"], service.store.count("in_progress"))
        yield jobs
        ready = sum(worker.ready for worker in service.workers)
        yield GaugeMetricFamily("adacache_workers_ready", "workers that can make videos", value=ready)
        hits, all_calls = (
            sum(service.metrics.calls.labels(kind)._value.get() for kind in kinds)
            for kinds in (("cached",), ("cached", "computed"))
        )
        yield GaugeMetricFamily(
            "adacache_cache_hit_ratio",
            "share of the calls that ran no block in full",
            value=hits / all_calls if all_calls else 0.0,
        )
