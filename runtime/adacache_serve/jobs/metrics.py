"""Metrics for Prometheus. Labels are models, devices and fixed words, so that the number of series is bounded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from adacache_serve.device.messages import Called, Memory, PhaseEnded
from adacache_serve.device.supervisor import SupervisedWorker
from adacache_serve.jobs.store import OPEN, Job, Store

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
DISTANCES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.24, 0.32, 0.40, 0.6, 1, 2)
MEMORY: Mapping[str, str] = {
    "planned": "estimated peak of the memory that running generations take beside the weights, in bytes",
    "budget": "memory that running generations may take beside the weights, in bytes",
    "free": "free memory of the device when a generation last began, changed its phase, or ended, in bytes",
}


class Metrics:
    """The metrics of one service. Nothing is global, so that a process may have several services."""

    def __init__(self, store: Store, workers: Callable[[], Sequence[SupervisedWorker]]) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"adacache_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"adacache_{name}", text, labels, buckets=buckets, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"adacache_{name}", text, labels, registry=self.registry)

        self.submitted = counter("jobs_submitted", "jobs that were accepted", "model")
        self.done = counter("jobs_ended", "jobs that ended, by status", "model", "status")
        self.failures = counter("job_failures", "jobs that failed, by error code", "model", "code")
        self.deaths = counter("worker_deaths", "worker processes that ended unexpectedly", "device")
        self.calls = counter("calls", "denoiser calls, computed or cached", "model", "kind")
        self.waited = histogram("job_wait_seconds", "time from accepted to started", SECONDS, "model")
        self.took = histogram("job_seconds", "time from started to completed", SECONDS, "model")
        self.phase = histogram(
            "phase_seconds",
            "device time of a job's encoding, denoising or decoding",
            SECONDS,
            "model",
            "phase",
        )
        self.call_seconds = histogram("call_seconds", "duration of a denoiser call", SECONDS, "model", "kind")
        self.stage_seconds = histogram(
            "stage_seconds", "time inside engines, by part of a call", SECONDS, "model", "part"
        )
        self.distance = histogram("distance", "distances between residuals that policies measured", DISTANCES, "model")
        self._memory = {kind: gauge(f"memory_{kind}_bytes", text, "device") for kind, text in MEMORY.items()}
        self._waiting = gauge(
            "jobs_waiting_for_memory", "jobs that a worker has and cannot start yet, for want of memory", "device"
        )
        self.registry.register(_Now(store, workers, self.calls))

    def called(self, message: Called) -> None:
        """Count a denoiser call."""
        call, model = message.call, message.model
        kind = "computed" if call["computed"] else "cached"
        self.calls.labels(model, kind).inc()
        self.call_seconds.labels(model, kind).observe(call["wall_ms"] / 1000)
        for part, time_ms in call["engine_ms"].items():
            self.stage_seconds.labels(model, part).observe(time_ms / 1000)
        if call.get("distance") is not None:
            self.distance.labels(model).observe(call["distance"])

    def phase_ended(self, message: PhaseEnded) -> None:
        """Count the device time of a phase."""
        self.phase.labels(message.model, message.phase).observe(message.device_seconds)

    def memory(self, worker: SupervisedWorker, message: Memory) -> None:
        """Set the gauges of a worker's memory."""
        for kind, gauge in self._memory.items():
            if (nbytes := getattr(message, kind)) is not None:
                gauge.labels(device(worker)).set(nbytes)
        self._waiting.labels(device(worker)).set(message.waiting)

    def died(self, worker: SupervisedWorker) -> None:
        """Count the death of a worker process."""
        self.deaths.labels(device(worker)).inc()
        for gauge in (self._memory["planned"], self._waiting):
            gauge.labels(device(worker)).set(0)

    def ended(self, job: Job, code: str) -> None:
        """Count a job that has ended, with the code of its error."""
        self.done.labels(job.model, job.status).inc()
        if job.status == "failed":
            self.failures.labels(job.model, code).inc()
        if job.started is not None:
            self.waited.labels(job.model).observe(max(0.0, job.started - job.created))
            if job.status == "completed" and job.ended is not None:
                self.took.labels(job.model).observe(max(0.0, job.ended - job.started))

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)


def device(worker: SupervisedWorker) -> str:
    """Return the label of a worker's device."""
    return worker.device or "default"


class _Now(Collector):
    """Gauges whose values are looked up when Prometheus asks."""

    def __init__(self, store: Store, workers: Callable[[], Sequence[SupervisedWorker]], calls: Counter) -> None:
        self._store, self._workers, self._calls = store, workers, calls

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Describe nothing, so that registering does not collect."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges with their present values."""
        workers = self._workers()
        jobs = GaugeMetricFamily("adacache_jobs", "jobs that have not ended", labels=["status"])
        with suppress(SQLAlchemyError):  # a database that does not answer must not hide the other metrics
            for status in OPEN:
                jobs.add_metric([status], self._store.count(status))
        yield jobs
        ready = sum(worker.ready for worker in workers)
        yield GaugeMetricFamily("adacache_workers_ready", "workers that can make videos", value=ready)
        resident = GaugeMetricFamily(
            "adacache_worker_resident_bytes", "resident memory of a worker process", labels=["device"]
        )
        for worker in workers:
            if worker.pid is not None and (nbytes := resident_nbytes(worker.pid)) is not None:
                resident.add_metric([device(worker)], nbytes)
        yield resident
        yield self._hit_ratio()

    def _hit_ratio(self) -> GaugeMetricFamily:
        found = GaugeMetricFamily(
            "adacache_cache_hit_ratio", "share of all calls so far in which no block ran in full", labels=["model"]
        )
        counts: dict[str, dict[str, float]] = {}
        for metric in self._calls.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    counts.setdefault(sample.labels["model"], {})[sample.labels["kind"]] = sample.value
        for model, kinds in counts.items():
            found.add_metric([model], kinds.get("cached", 0.0) / sum(kinds.values()))
        return found


def resident_nbytes(pid: int) -> int | None:
    """Return the resident memory of a process in bytes; None where there is no such process, or no Linux."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(fields["VmRSS"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
