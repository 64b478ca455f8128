"""A graph of a VAE, with buffers of its own for every shape at which it is called."""

from collections.abc import Iterable, Mapping

import numpy as np

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.contract.device import Buffer, Call, Device
from adacache_engines.contract.engine import Backend
from adacache_runtime.samplers.update import Floats

Shapes = tuple[tuple[int, ...], ...]


class VaeGraph:
    """A graph of a VAE with its engine and buffers: one array in, one or more out, all float32 on the host.

    It is bound at all sizes before its first call, so that activations are allocated once, for the largest of them.
    The engine stays loaded for as long as this object lives.
    """

    def __init__(self, graph: Graph, backend: Backend, at: Iterable[Mapping[str, int]]) -> None:
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
        for sizes in at:
            shapes = self._shapes(sizes)
            if shapes not in self._calls:
                buffers = _allocate(graph, sizes, backend.device)
                self._calls[shapes] = buffers, self._engine.bind(buffers)

    def __call__(self, value: Floats, sizes: Mapping[str, int]) -> list[Floats]:
        """Run the graph.

        Args:
            value: the graph's input.
            sizes: sizes of the dynamic axes, at which it is bound.

        Returns:
            The outputs, in order; the arrays belong to the caller.
        """
        buffers, call = self._calls[self._shapes(sizes)]
        buffers[self.graph.inputs[0].name].write(np.ascontiguousarray(value))
        call()
        # what a GPU's buffers read cannot be written
        return [np.require(buffers[spec.name].read(), np.float32, "W") for spec in self.graph.outputs]

    def _shapes(self, sizes: Mapping[str, int]) -> Shapes:
        return tuple(spec.shape(sizes) for spec in (*self.graph.inputs, *self.graph.outputs))


def _allocate(graph: Graph, sizes: Mapping[str, int], device: Device) -> dict[str, Buffer]:
    """Allocate buffers for all inputs and outputs."""
    specs = (*graph.inputs, *graph.outputs)
    return {spec.name: device.empty(spec.shape(sizes), NUMPY_DTYPES[spec.dtype]) for spec in specs}


def batches(images: int, most: int) -> list[range]:
    """Return the indices of ``images`` images in runs of ``most`` at most."""
    return [range(start, min(start + most, images)) for start in range(0, images, most)]
