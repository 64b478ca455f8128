"""The engine contract: bind once, call many times.

Buffers belong to the caller. Names, dtypes and shapes are checked when an engine is bound; the call that comes
back only runs (or enqueues) the engine, and may be repeated as often as the buffers' contents change.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import mismatches
from adacache_engines.contract.device import Buffer, Call, Device
from adacache_engines.errors import EngineError


class Engine(Protocol):
    """One compiled graph."""

    @property
    def graph(self) -> Graph:
        """Its inputs and outputs."""
        ...

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        """Ties every input and output to a buffer.

        An output may share memory with an input only where the graph is element-wise.

        Raises:
            EngineError: a name, dtype or shape does not fit; all of them are listed.
        """
        ...

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """Activation memory that it takes for inputs of these shapes; None = grows as needed.

        Engines of a back end that knows share it: together they take as much as the one that takes most.

        Raises:
            EngineError: it cannot run at these shapes.
        """
        ...


class Backend(Protocol):
    """An opened backend: loads a bundle's graphs for one device; ``close`` frees what it holds."""

    @property
    def name(self) -> str:
        """For reports: ``onnxruntime CPUExecutionProvider``."""
        ...

    @property
    def device(self) -> Device: ...

    def weights_nbytes(self, graphs: Sequence[Graph]) -> int | None:
        """Device memory for the weights of engines; None = they share the bundle's one file."""
        ...

    def load(self, graph: Graph) -> Engine:
        """
        Raises:
            EngineError: the back end cannot run the graph; says why.
        """
        ...

    def close(self) -> None: ...


class BackendConfig(Protocol):
    """A choice of a backend and its settings: a frozen dataclass, which can be compared, copied and pickled.

    Its fields are made by :func:`adacache_engines.contract.options.option`, so that every command has them as options.
    """

    def open(self, bundle: Bundle) -> Backend:
        """Open the backend on an opened bundle.

        Raises:
            InputError: this machine, or the installed library, cannot do what the settings ask for.
            MissingDependencyError: the backend's library is not installed.
            EngineError: there is no GPU, or the bundle has nothing that runs on it.
            BundleError: compiled plans are missing or were changed.
        """
        ...


def check_binding(graph: Graph, tensors: Mapping[str, Buffer]) -> None:
    """
    Raises:
        EngineError: ``tensors`` are not what the graph takes and gives.
    """
    given = {name: (buffer.shape, buffer.dtype) for name, buffer in tensors.items()}
    problems = mismatches((*graph.inputs, *graph.outputs), given)
    if problems:
        raise EngineError(f"engine {graph.name} cannot be bound: " + "; ".join(problems))
