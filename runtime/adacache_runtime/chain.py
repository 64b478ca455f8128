"""The run of an encoder of texts or images, which is a chain of graphs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.contract.device import Buffer
from adacache_engines.contract.engine import Backend

HIDDEN, HIDDEN_OUT = "hidden", "hidden_out"  # what one graph of the chain gives and the next one takes

States = NDArray[np.float32]


def run_chain(
    graphs: Sequence[Graph], backend: Backend, sizes: Mapping[str, int], rows: Sequence[Mapping[str, NDArray[Any]]]
) -> list[States]:
    """Run a chain for each of several inputs, and return the states (1, ...) that its last graph gives for each.

    The graphs are loaded one after another, each let go of before the next: an encoder is often larger than the model.

    Args:
        graphs: graphs in order: ``hidden``, or ``hidden_out`` of a graph that takes ``hidden``, goes to the next one.
        backend: the backend that runs them.
        sizes: sizes of the dynamic axes.
        rows: what the first graph takes, by name, for each run.
    """
    device, last = backend.device, graphs[-1].outputs[0].name
    held: list[dict[str, Buffer]] = [{} for _ in rows]  # by tensor
    for index, graph in enumerate(graphs):
        engine = backend.load(graph)
        for row, tensors in zip(rows, held, strict=True):
            made = [*graph.outputs, *([] if index else graph.inputs)]
            tensors |= {spec.name: device.empty(spec.shape(sizes), NUMPY_DTYPES[spec.dtype]) for spec in made}
            for name in () if index else row:
                tensors[name].write(row[name])
            engine.bind({spec.name: tensors[spec.name] for spec in (*graph.inputs, *graph.outputs)})()
            if HIDDEN_OUT in tensors:
                tensors[HIDDEN] = tensors.pop(HIDDEN_OUT)
        del engine
    states = HIDDEN if last == HIDDEN_OUT else last
    return [tensors[states].read().astype(np.float32) for tensors in held]
