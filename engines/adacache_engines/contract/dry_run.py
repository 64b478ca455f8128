"""A dry run: a device that counts allocations, and engines that tell the memory they would need. Nothing runs."""

import math
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from adacache_engines.bundle.manifest import Graph
from adacache_engines.contract.device import Array, Buffer, Call, Mark, in_turn
from adacache_engines.contract.engine import Backend, Engine, check_binding
from adacache_engines.contract.staging import staged

# Bytes of activations by graph and shapes of its inputs, as far as engines were loaded and have told them.
KnownWorkspaces = MutableMapping[Hashable, int | None]
# Bytes that engines share, by graph and shapes of its inputs: the most of all bindings; None = they grow as needed.
Workspaces = MutableMapping[Hashable, int | None]


@dataclass(frozen=True)
class DryRunBuffer:
    """A buffer that has a shape and a dtype and no memory; its address is that of a buffer that begins at 0."""

    shape: tuple[int, ...]
    dtype: np.dtype
    address: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def part(self, start: int, stop: int) -> "DryRunBuffer":
        entries = range(self.shape[0])[start:stop]
        return self._view(entries.start, (len(entries), *self.shape[1:]))

    def row(self, index: int) -> "DryRunBuffer":
        return self._view(index, self.shape[1:])

    def _view(self, start: int, shape: tuple[int, ...]) -> "DryRunBuffer":
        step = math.prod(self.shape[1:]) * self.dtype.itemsize
        return DryRunBuffer(shape, self.dtype, self.address + start * step)

    def write(self, array: Array) -> None:
        pass

    def read(self) -> Array:
        raise NotImplementedError("a buffer of a dry run holds no values")


@dataclass(frozen=True)
class DryRunReadback:
    """A readback that never has a result."""

    def start(self) -> None:
        pass

    def result(self) -> Array:
        raise NotImplementedError("a buffer of a dry run holds no values")


@dataclass
class DryRunDevice:
    """A device that counts the bytes of the buffers that are asked for.

    Attributes:
        nbytes: bytes of all buffers so far.
    """

    nbytes: int = 0
    kind: str = "dry run"
    index: int = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> DryRunBuffer:
        buffer = DryRunBuffer(shape, dtype)
        self.nbytes += buffer.nbytes
        return buffer

    def copy(self, source: Buffer, target: Buffer) -> Call:
        return _nothing

    def readback(self, source: Buffer) -> DryRunReadback:
        return DryRunReadback()

    def sequence(self, calls: Sequence[Call], name: str = "calls") -> Call:
        return in_turn(calls)

    def free_nbytes(self) -> None:
        """Return None: a dry run is never short of memory."""

    def synchronize(self) -> None:
        """Do nothing: nothing runs."""

    def mark(self) -> Call:
        return _nothing

    def marker(self) -> Call:
        return _nothing

    def milliseconds(self, start: Mark, stop: Mark) -> float:
        return 0.0


class WorkspaceSource(Protocol):
    """An engine, or an object that tells its activation memory in its stead."""

    @property
    def graph(self) -> Graph: ...

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None: ...


@dataclass(frozen=True)
class DryRunEngine:
    """An engine that tells its activation memory when it is bound, and never runs.

    Attributes:
        source: object that knows the activation memory.
        workspaces: mapping that gets the bytes of each binding.
    """

    source: WorkspaceSource
    workspaces: Workspaces

    @property
    def graph(self) -> Graph:
        return self.source.graph

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        check_binding(self.graph, tensors)
        shapes = {spec.name: tensors[spec.name].shape for spec in self.graph.inputs}
        key, nbytes = _key(self.graph, shapes), self.workspace_nbytes(shapes)
        if nbytes is not None:
            nbytes = max(staged(self.graph, tensors, nbytes)[1], self.workspaces.get(key) or 0)
        self.workspaces[key] = nbytes
        return _nothing

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        return self.source.workspace_nbytes(shapes)


def _key(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> Hashable:
    return graph.name, tuple(sorted(shapes.items()))


def arena_nbytes(workspaces: Workspaces) -> int | None:
    """Return the activation memory of engines that share it: the largest; None = it grows as needed."""
    known = [nbytes for nbytes in workspaces.values() if nbytes is not None]
    return max(known, default=0) if len(known) == len(workspaces) else None


@dataclass
class _LoadedOnDemand:
    """A source that loads its engine only where nobody has asked for these shapes yet, and then keeps it."""

    graph: Graph
    backend: Backend
    known: KnownWorkspaces
    engine: Engine | None = None

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        key = _key(self.graph, shapes)
        if key not in self.known:
            self.engine = self.engine or self.backend.load(self.graph)
            self.known[key] = self.engine.workspace_nbytes(shapes)
        return self.known[key]


@dataclass(frozen=True)
class _NeverLoaded:
    """A source that knows nothing, so that its engine need not be loaded."""

    graph: Graph

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Return None: the activation memory is not known."""


@dataclass
class DryRunBackend:
    """A backend whose engines never run.

    Attributes:
        backend: the backend in whose stead it stands.
        loads: whether that backend's engines are loaded to tell their activation memory.
        known: activation memory that they have told so far; more is added.
        device: the device that counts.
        workspaces: bytes that its engines share, by graph and shapes.
    """

    backend: Backend
    loads: bool
    known: KnownWorkspaces
    device: DryRunDevice = field(default_factory=DryRunDevice)
    workspaces: Workspaces = field(default_factory=dict)
    name: str = "dry run"

    def weights_nbytes(self, graphs: Sequence[Graph]) -> int | None:
        return self.backend.weights_nbytes(graphs)

    def load(self, graph: Graph) -> DryRunEngine:
        source = _LoadedOnDemand(graph, self.backend, self.known) if self.loads else _NeverLoaded(graph)
        return DryRunEngine(source, self.workspaces)

    def close(self) -> None:
        """Do nothing: nothing is held."""


def _nothing() -> None:
    pass
