"""Measure a whole generation, call by call, with the time of every stage in it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Graph
from adacache_engines.contract.device import Buffer, Call, Device, Mark
from adacache_engines.contract.engine import Backend, Engine
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.memory.estimate import MemoryEstimate
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.reports.summary import timing
from adacache_runtime.request import Request
from adacache_runtime.trace import CallRecord, Trace

Marks = dict[str, list[tuple[Mark, Mark]]]  # by graph: around each of its calls


@dataclass(frozen=True)
class StageTime:
    """The calls of one engine in a generation; ``share`` is its share of the time inside engines."""

    calls: int
    ms: float
    share: float


@dataclass(frozen=True)
class Timeline:
    """The measurements of a generation.

    Attributes:
        load_ms: time to load all engines.
        first_call_ms: time of one computed call before the generation, the first on these engines.
        trace: trace of the generation, which begins warm.
        stages: stages by graph, in the order of their first call, those that run once a generation included.
        memory: estimate of the memory that the generation takes.
    """

    load_ms: float
    first_call_ms: float
    trace: Trace
    stages: Mapping[str, StageTime]
    memory: MemoryEstimate

    def parts(self) -> dict[str, tuple[float, float]]:
        """Milliseconds by part of a call, all calls together, and the share of the time inside engines."""
        names = dict.fromkeys(name for record in self.trace.calls for name in record.engine_ms)
        times = {name: sum(record.engine_ms.get(name, 0) for record in self.trace.calls) for name in names}
        total = sum(times.values()) or 1.0
        return {name: (ms, ms / total) for name, ms in times.items()}

    def efficiency(self) -> float | None:
        """Speed-up / (calls / computed calls), the part of the skipped work that is saved; None if unknown."""
        speed_up = timing(self.trace).speed_up
        computed = len(self.trace.computed())
        return speed_up * computed / len(self.trace.calls) if speed_up is not None else None


def measure_generation(
    bundle: Bundle,
    backend: Backend,
    request: Request,
    on_call: Callable[[CallRecord], None] = lambda _: None,
    expert_offload: bool = False,
) -> Timeline:
    """Load all engines, make one call to warm them up, and measure a generation.

    Args:
        bundle: the opened bundle.
        backend: the backend that runs it.
        request: the request for the generation.
        on_call: called with the record of each call as it becomes known.
        expert_offload: whether engines of one expert at a time are loaded.

    Raises:
        AdaCacheError: what :class:`Pipeline` and its ``generate`` raise.
    """
    timed = _TimedBackend(backend)
    start = time.perf_counter()
    pipeline = Pipeline(bundle, timed, expert_offload=expert_offload)
    load_ms = 1e3 * (time.perf_counter() - start)
    first = pipeline.generate(replace(request, steps=1, policy=NeverReuse())).trace.calls[0]
    timed.marks.clear()
    trace = pipeline.generate(request, on_call).trace
    return Timeline(
        load_ms, first.wall_ms, trace, _stages(timed.marks, backend.device), pipeline.prepare(request).memory
    )


def _stages(marks: Marks, device: Device) -> dict[str, StageTime]:
    times = {name: sum(device.milliseconds(*pair) for pair in pairs) for name, pairs in marks.items()}
    total = sum(times.values()) or 1.0
    return {name: StageTime(len(marks[name]), ms, ms / total) for name, ms in times.items()}


@dataclass(frozen=True)
class _TimedBackend:
    """A backend that marks the beginning and the end of every call of its engines."""

    inner: Backend
    marks: Marks = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def device(self) -> Device:
        return self.inner.device

    def weights_nbytes(self, graphs: Sequence[Graph]) -> int | None:
        return self.inner.weights_nbytes(graphs)

    def load(self, graph: Graph) -> "_TimedEngine":
        return _TimedEngine(self.inner.load(graph), self.inner.device, self.marks)

    def close(self) -> None:
        self.inner.close()


@dataclass(frozen=True)
class _TimedEngine:
    inner: Engine
    device: Device
    marks: Marks

    @property
    def graph(self) -> Graph:
        return self.inner.graph

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        call, mark, name = self.inner.bind(tensors), self.device.mark, self.graph.name

        def timed() -> None:
            start = mark()
            call()
            self.marks.setdefault(name, []).append((start, mark()))

        return timed

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        return self.inner.workspace_nbytes(shapes)
