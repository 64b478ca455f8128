"""Room in an engine's workspace for tensors whose addresses a GPU's kernels cannot use as they are."""

from collections.abc import Mapping

from adacache_engines.bundle.manifest import Graph
from adacache_engines.contract.device import Buffer

# Allocations on a GPU begin at multiples of so many bytes, and compiled kernels read whole vectors from there on. A
# part or a row of a tensor may begin anywhere.
ALIGNMENT = 256


def staged(graph: Graph, tensors: Mapping[str, Buffer], activations: int) -> tuple[Mapping[str, int], int]:
    """Return where an engine's workspace holds copies of tensors that are not aligned, and the size of all of it.

    Args:
        graph: graph of the engine.
        tensors: buffer of each input and output.
        activations: bytes of the workspace that the engine itself uses, at its beginning.

    Returns:
        Offsets in bytes by the name of the tensor, which are aligned; and the bytes of the whole workspace.
    """
    offsets, end = {}, activations
    for spec in (*graph.inputs, *graph.outputs):
        buffer = tensors[spec.name]
        if buffer.address % ALIGNMENT:
            offsets[spec.name] = -(-end // ALIGNMENT) * ALIGNMENT
            end = offsets[spec.name] + buffer.nbytes
    return offsets, end
