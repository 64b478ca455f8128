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
    """One graph, loaded and ready to be bound to buffers."""

    @property
    def graph(self) -> Graph:
        """The manifest's entry of the graph, with its inputs and outputs."""
        ...

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        """Tie every input and output to a buffer, and return the call that runs the engine on them.

        An output may share memory with an input only where the graph is element-wise.

        Raises:
            EngineError: a name, dtype or shape is not the graph's; all of them are listed.
        """
        ...

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """Return the bytes of activations for inputs of these shapes; None = they grow as needed.

        Engines of a backend that knows them share this memory: together they take as much as the one that takes most.
        Behind the activations they keep copies of bound tensors that are not aligned
        (:func:`adacache_engines.contract.staging.staged`).

        Raises:
            EngineError: the engine cannot run at these shapes.
        """
        ...


class Backend(Protocol):
    """An opened backend: loads a bundle's graphs for one device; ``close`` frees what it holds."""

    @property
    def name(self) -> str:
        """Name for reports, such as ``onnxruntime CPUExecutionProvider``."""
        ...

    @property
    def device(self) -> Device: ...

    def weights_nbytes(self, graphs: Sequence[Graph]) -> int | None:
        """Return the bytes of device memory for these graphs' weights; None = they stay in the bundle's one file."""
        ...

    def load(self, graph: Graph) -> Engine:
        """Load a graph as an engine.

        Raises:
            EngineError: the backend cannot run the graph; the message says why.
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
    """Check that buffers have the names, dtypes and shapes of a graph's inputs and outputs.

    Raises:
        EngineError: they have not; every difference is listed.
    """
    given = {name: (buffer.shape, buffer.dtype) for name, buffer in tensors.items()}
    problems = mismatches((*graph.inputs, *graph.outputs), given)
    if problems:
        raise EngineError(f"engine {graph.name} cannot be bound: " + "; ".join(problems))
