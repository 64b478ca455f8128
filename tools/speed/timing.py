"""Repeated measurements, and a backend that adds up the time inside its engines."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from adacache_engines.bundle.manifest import Graph, Manifest
from adacache_engines.contract.device import Buffer, Call, Device
from adacache_engines.contract.engine import Backend, Engine
from adacache_runtime.denoising.stages import Engines


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class TimedEngine:
    engine: Engine
    owner: "TimedBackend"

    @property
    def graph(self) -> Graph:
        return self.engine.graph

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        inner = self.engine.bind(tensors)

        def call() -> None:
            start = time.perf_counter()
            inner()
            self.owner.seconds += time.perf_counter() - start

        return call

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        return self.engine.workspace_nbytes(shapes)


@dataclass
class TimedBackend:
    """A backend around another one whose calls return when they are done.

    Attributes:
        seconds: time inside engines so far.
        engines: engines loaded so far, by graph.
    """

    backend: Backend
    seconds: float = 0.0
    engines: dict[str, TimedEngine] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def device(self) -> Device:
        return self.backend.device

    def weights_nbytes(self, graphs: Sequence[Graph]) -> int | None:
        return self.backend.weights_nbytes(graphs)

    def load(self, graph: Graph) -> TimedEngine:
        self.engines[graph.name] = TimedEngine(self.backend.load(graph), self)
        return self.engines[graph.name]

    def close(self) -> None:
        self.backend.close()

    def loaded(self, manifest: Manifest) -> Engines:
        """Return all of a bundle's engines, which must have been loaded."""
        stages = {stage.graph.name: self.engines[stage.graph.name] for stage in manifest.stages}
        signals = {graph.name: self.engines[graph.name] for graph in manifest.signal_graphs()}
        return Engines(stages, {name: self.engines[name] for name in manifest.arithmetic}, signals)
