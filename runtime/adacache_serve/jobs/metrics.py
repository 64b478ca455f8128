"""What Prometheus reads. Labels are models, devices and words of ours, so there are only so many series."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from adacache_serve.device.supervisor import Worker
from adacache_serve.jobs.store import Job, Store
from adacache_serve.messages import Called, Memory, PhaseEnded

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
DISTANCES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.24, 0.32, 0.40, 0.6, 1, 2)
MEMORY: Mapping[str, str] = {
    "planned": "bytes beside the weights that generations in flight may come to take",
    "budget": "bytes beside the weights that generations may take",
    "free": "bytes of the device that were free when a generation last began, went on to decode, or ended",
}


class Metrics:
    """Of one service; nothing is global, so that several may live in a process."""

    def __init__(self, store: Store, workers: Callable[[], Sequence[Worker]]) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"adacache_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"adacache_{name}", text, labels, buckets=buckets, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"adacache_{name}", text, labels, registry=self.registry)

        self.submitted = counter("jobs_submitted", "jobs that were stored", "model")
        self.done = counter("jobs_ended", "jobs that ended, by how", "model", "status")
        self.failures = counter("job_failures", "jobs that failed, by the kind of error", "model", "code")
        self.deaths = counter("worker_deaths", "worker processes that ended without being asked to", "device")
        self.calls = counter("calls", "calls of the denoiser, computed or cached", "model", "kind")
        self.waited = histogram("job_wait_seconds", "from stored to begun", SECONDS, "model")
        self.took = histogram("job_seconds", "from begun to completed", SECONDS, "model")
        self.phase = histogram(
            "phase_seconds",
            "of the device, that a job's encoding, denoising or decoding took",
            SECONDS,
            "model",
            "phase",
        )
        self.call_seconds = histogram("call_seconds", "of a call of the denoiser", SECONDS, "model", "kind")
        self.stage_seconds = histogram("stage_seconds", "inside engines, by part of a call", SECONDS, "model", "part")
        self.distance = histogram("distance", "that policies measured", DISTANCES, "model")
        self._memory = {kind: gauge(f"memory_{kind}_bytes", text, "device") for kind, text in MEMORY.items()}
        self._waiting = gauge("jobs_waiting_for_memory", "jobs that a worker has and cannot begin yet", "device")
        self.registry.register(_Now(store, workers, self.calls))

    def called(self, message: Called) -> None:
        call, model = message.call, message.model
        kind = "computed" if call["computed"] else "cached"
        self.calls.labels(model, kind).inc()
        self.call_seconds.labels(model, kind).observe(call["wall_ms"] / 1000)
        for part, time_ms in call["engine_ms"].items():
            self.stage_seconds.labels(model, part).observe(time_ms / 1000)
        if call.get("distance") is not None:
            self.distance.labels(model).observe(call["distance"])

    def phase_ended(self, message: PhaseEnded) -> None:
        self.phase.labels(message.model, message.phase).observe(message.device_seconds)

    def memory(self, worker: Worker, message: Memory) -> None:
        for kind, gauge in self._memory.items():
            if (nbytes := getattr(message, kind)) is not None:
                gauge.labels(device(worker)).set(nbytes)
        self._waiting.labels(device(worker)).set(message.waiting)

    def died(self, worker: Worker) -> None:
        self.deaths.labels(device(worker)).inc()
        for gauge in (self._memory["planned"], self._waiting):
            gauge.labels(device(worker)).set(0)

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


def device(worker: Worker) -> str:
    return worker.device or "default"


class _Now(Collector):
    """What is looked at when somebody asks."""

    def __init__(self, store: Store, workers: Callable[[], Sequence[Worker]], calls: Counter) -> None:
        self._store, self._workers, self._calls = store, workers, calls

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing, so that registering does not ask."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        workers = self._workers()
        jobs = GaugeMetricFamily("adacache_jobs", "jobs that have not ended", labels=["status"])
        jobs.add_metric(["queued"], self._store.count("queued"))
        jobs.add_metric(["in_progress"], self._store.count("in_progress"))
        yield jobs
        ready = sum(worker.ready for worker in workers)
        yield GaugeMetricFamily("adacache_workers_ready", "workers that can make videos", value=ready)
        resident = GaugeMetricFamily(
            "adacache_worker_resident_bytes", "of the machine's memory, in a worker process", labels=["device"]
        )
        for worker in workers:
            if worker.pid is not None and (nbytes := resident_nbytes(worker.pid)) is not None:
                resident.add_metric([device(worker)], nbytes)
        yield resident
        yield self._hit_ratio()

    def _hit_ratio(self) -> GaugeMetricFamily:
        found = GaugeMetricFamily(
            "adacache_cache_hit_ratio", "share of the calls that ran no block in full, of all so far", labels=["model"]
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
    """Of a process, as Linux has it; None where it does not, or there is no such process."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(fields["VmRSS"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
