"""A graph of a VAE, with buffers of its own for every shape at which it is called."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import NUMPY_DTYPES, TensorSpec
from adacache_engines.contract.device import Buffer, Call, Device
from adacache_engines.contract.engine import Backend
from adacache_runtime.samplers.update import Floats

Sizes = Mapping[str, int]  # of dynamic axes, by their names
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Step:
    """A step from latents to pixels or back: a graph, and the sizes of its axes at which it is called.

    Attributes:
        graph: a graph of the bundle.
        at: sizes of the dynamic axes. Where the graph carries tensors, each tile of a chunk has an entry of its own, in
            the order in which tiles are coded, and so for each length of a chunk.
        first: graph that the first chunk of a video takes; None = the same.
        first_at: sizes of its dynamic axes, an entry for each tile.
    """

    graph: Graph
    at: tuple[Sizes, ...]
    first: Graph | None = None
    first_at: tuple[Sizes, ...] = ()

    @property
    def graphs(self) -> list[Graph]:
        """The graphs that are loaded together."""
        return [graph for graph, at in ((self.first, self.first_at), (self.graph, self.at)) if graph and at]


class VaeGraph:
    """A graph of a VAE with its engine and buffers: one array in, one or more out, all float32 on the host.

    It is bound at all sizes before its first call, so that activations are allocated once, for the largest of them.
    The engine stays loaded for as long as this object lives.
    """

    def __init__(self, graph: Graph, backend: Backend, at: Iterable[Sizes]) -> None:
        """Load the engine and bind it at all sizes.

        Args:
            graph: a graph of the bundle.
            backend: the backend that runs it.
            at: sizes of the dynamic axes at which it will be called, in any number and order.

        Raises:
            EngineError: the engine cannot be loaded, or does not run at these sizes.
        """
        self.graph = graph
        self._engine = backend.load(graph)
        self._calls: dict[Shapes, tuple[Mapping[str, Buffer], Call]] = {}
        specs = (*graph.inputs, *graph.outputs)
        for sizes in at:
            key = shapes(specs, sizes)
            if key not in self._calls:
                buffers = allocate(specs, sizes, backend.device)
                self._calls[key] = buffers, self._engine.bind(buffers)

    def __call__(self, value: Floats, sizes: Sizes) -> list[Floats]:
        """Run the graph.

        Args:
            value: the graph's input.
            sizes: sizes of the dynamic axes, at which it is bound.

        Returns:
            The outputs, in order; the arrays belong to the caller.
        """
        buffers, call = self._calls[shapes((*self.graph.inputs, *self.graph.outputs), sizes)]
        return run(self.graph, buffers, call, value)


def run(graph: Graph, buffers: Mapping[str, Buffer], call: Call, value: Floats) -> list[Floats]:
    """Write a graph's first input, run it, and read the outputs that it does not carry."""
    buffers[graph.inputs[0].name].write(np.ascontiguousarray(value))
    call()
    read = [buffers[spec.name].read() for spec in graph.outputs if spec.name not in graph.carried]
    return [np.require(array, np.float32, "W") for array in read]  # what a GPU's buffers read cannot be written


def allocate(specs: Iterable[TensorSpec], sizes: Sizes, device: Device) -> dict[str, Buffer]:
    """Allocate a buffer for each tensor."""
    return {spec.name: device.empty(spec.shape(sizes), NUMPY_DTYPES[spec.dtype]) for spec in specs}


def shapes(specs: Iterable[TensorSpec], sizes: Sizes) -> Shapes:
    """Return the shapes of tensors at given sizes of the dynamic axes."""
    return tuple(spec.shape(sizes) for spec in specs)


def batches(images: int, most: int) -> list[range]:
    """Return the indices of ``images`` images in runs of ``most`` at most."""
    return [range(start, min(start + most, images)) for start in range(0, images, most)]
