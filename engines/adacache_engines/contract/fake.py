"""A fake backend whose engines are numpy functions, on which tests of the loop take milliseconds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from adacache_engines.bundle.manifest import Graph
from adacache_engines.contract.device import Array, Buffer, Call, HostBuffer, HostDevice
from adacache_engines.contract.engine import check_binding
from adacache_engines.errors import EngineError

Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class FakeEngine:
    graph: Graph
    function: Function
    log: list[str]

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        check_binding(self.graph, tensors)
        arrays = {name: buffer.array for name, buffer in tensors.items() if isinstance(buffer, HostBuffer)}
        outputs = [spec.name for spec in self.graph.outputs]

        def call() -> None:
            self.log.append(self.graph.name)
            results = self.function({spec.name: arrays[spec.name] for spec in self.graph.inputs})
            for name in outputs:
                arrays[name][...] = results[name]

        return call

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        return None


@dataclass
class FakeBackend:
    """A backend that runs a numpy function for each graph.

    Attributes:
        functions: by a graph's name, a function from its inputs to its outputs, by their names.
        log: names of the graphs in the order in which they ran.
    """

    functions: Mapping[str, Function]
    name: str = "fake"
    device: HostDevice = field(default_factory=HostDevice)
    log: list[str] = field(default_factory=list)

    def load(self, graph: Graph) -> FakeEngine:
        if graph.name not in self.functions:
            raise EngineError(f"the fake backend has no function for {graph.name}")
        return FakeEngine(graph, self.functions[graph.name], self.log)

    def weights_nbytes(self, graphs: Sequence[Graph]) -> None:
        """Return None: there are no weights."""

    def close(self) -> None:
        pass
