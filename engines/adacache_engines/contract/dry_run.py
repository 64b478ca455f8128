"""A device and engines on paper: what is allocated on them is counted, and nothing runs."""

import math
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from adacache_engines.bundle.manifest import Graph
from adacache_engines.contract.device import Array, Buffer, Call, in_turn
from adacache_engines.contract.engine import Backend, Engine, check_binding

Known = MutableMapping[Hashable, int | None]  # an engine and shapes to its need, once it was asked


@dataclass(frozen=True)
class Sheet:
    """A buffer without memory."""

    shape: tuple[int, ...]
    dtype: np.dtype
    address: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def part(self, start: int, stop: int) -> "Sheet":
        return Sheet((len(range(self.shape[0])[start:stop]), *self.shape[1:]), self.dtype)

    def row(self, index: int) -> "Sheet":
        return Sheet(self.shape[1:], self.dtype)

    def write(self, array: Array) -> None:
        pass

    def read(self) -> Array:
        raise NotImplementedError("there is nothing to read")


@dataclass(frozen=True)
class NoReadback:
    def start(self) -> None:
        pass

    def result(self) -> Array:
        raise NotImplementedError("there is nothing to read")


@dataclass
class Paper:
    """A device that only counts."""

    nbytes: int = 0
    kind: str = "paper"
    index: int = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Sheet:
        sheet = Sheet(shape, dtype)
        self.nbytes += sheet.nbytes
        return sheet

    def copy(self, source: Buffer, target: Buffer) -> Call:
        return _nothing

    def readback(self, source: Buffer) -> NoReadback:
        return NoReadback()

    def sequence(self, calls: Sequence[Call], name: str = "calls") -> Call:
        return in_turn(calls)

    def free_nbytes(self) -> None:
        """Paper is never short."""

    def mark(self) -> None:
        """Nothing runs."""

    def milliseconds(self, start: object, stop: object) -> float:
        return 0.0


class Asks(Protocol):
    """What can be asked for the activations of a graph: an engine, or what stands for one."""

    @property
    def graph(self) -> Graph: ...

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None: ...


@dataclass(frozen=True)
class Asked:
    """An engine that is asked for its need instead of being bound."""

    engine: Asks
    needs: list[int | None]

    @property
    def graph(self) -> Graph:
        return self.engine.graph

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        check_binding(self.graph, tensors)
        self.needs.append(self.workspace_nbytes({spec.name: tensors[spec.name].shape for spec in self.graph.inputs}))
        return _nothing

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        return self.engine.workspace_nbytes(shapes)


def arena_nbytes(needs: Sequence[int | None]) -> int | None:
    """Activations of engines that share them; None = they grow as needed."""
    known = [need for need in needs if need is not None]
    return max(known, default=0) if len(known) == len(needs) else None


@dataclass
class _Unloaded:
    """An engine that is loaded only if it must be asked, and then as long as this is there."""

    graph: Graph
    backend: Backend
    known: Known
    engine: Engine | None = None

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        key = self.graph.name, tuple(sorted(shapes.items()))
        if key not in self.known:
            self.engine = self.engine or self.backend.load(self.graph)
            self.known[key] = self.engine.workspace_nbytes(shapes)
        return self.known[key]


@dataclass(frozen=True)
class _Unknown:
    """An engine that has no answer, and so is not loaded."""

    graph: Graph

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Nobody knows."""


@dataclass
class PaperBackend:
    """Stands for a back end.

    Attributes:
        backend: that it stands for.
        asks: whether its engines are asked for their activations.
        known: what they said so far.
        device: counts.
        needs: of all engines that were bound.
    """

    backend: Backend
    asks: bool
    known: Known
    device: Paper = field(default_factory=Paper)
    needs: list[int | None] = field(default_factory=list)
    name: str = "paper"

    def weights_nbytes(self, graphs: Sequence[Graph]) -> int | None:
        return self.backend.weights_nbytes(graphs)

    def load(self, graph: Graph) -> Asked:
        return Asked(_Unloaded(graph, self.backend, self.known) if self.asks else _Unknown(graph), self.needs)

    def close(self) -> None:
        """There is nothing to free."""


def _nothing() -> None:
    pass
