"""An engine of a VAE, with buffers of its own for every shape that it is called at."""

from collections.abc import Mapping

import numpy as np

from adacache_engines.base import Backend
from adacache_engines.buffers import Buffer, Call, Device
from adacache_engines.manifest import Graph
from adacache_engines.tensors import NUMPY_DTYPES
from adacache_runtime.samplers import Floats


class Bound:
    """Takes one array and gives one or more, all float32 on the host; loaded for as long as it lives."""

    def __init__(self, graph: Graph, backend: Backend) -> None:
        self.graph = graph
        self._engine, self._device = backend.load(graph), backend.device
        self._calls: dict[tuple[tuple[int, ...], ...], tuple[Mapping[str, Buffer], Call]] = {}

    def __call__(self, value: Floats, sizes: Mapping[str, int]) -> list[Floats]:
        """
        Args:
            value: of the graph's input.
            sizes: of the dynamic axes.

        Returns:
            The outputs, in order.
        """
        key = shapes(self.graph, sizes)
        if key not in self._calls:
            made = allocate(self.graph, sizes, self._device)
            self._calls[key] = made, self._engine.bind(made)
        buffers, call = self._calls[key]
        buffers[self.graph.inputs[0].name].write(np.ascontiguousarray(value))
        call()
        return [buffers[spec.name].read().astype(np.float32, copy=False) for spec in self.graph.outputs]


def shapes(graph: Graph, sizes: Mapping[str, int]) -> tuple[tuple[int, ...], ...]:
    """Of all inputs and outputs."""
    return tuple(spec.shape(sizes) for spec in (*graph.inputs, *graph.outputs))


def allocate(graph: Graph, sizes: Mapping[str, int], device: Device) -> dict[str, Buffer]:
    """Buffers for all inputs and outputs."""
    specs = (*graph.inputs, *graph.outputs)
    return {spec.name: device.empty(spec.shape(sizes), NUMPY_DTYPES[spec.dtype]) for spec in specs}
