"""Take the keys of attention tile by tile, for ONNX Runtime's CPU provider.

Its kernel of the standard Attention operator writes out all scores, (batch, heads, queries, keys): 5 GB at 480p. Its
own MultiHeadAttention needs a few tiles, and is faster for long sequences; it takes (batch, tokens, heads * width).
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from adacache_engines.bundle.manifest import Graph
from adacache_engines.errors import require
from adacache_engines.passes.graph_pass import GraphPass

TURN = [0, 2, 1, 3]  # (batch, tokens, heads, width) to (batch, heads, tokens, width), and back
CONTRIB = "com.microsoft"


def _needs(_graph: Graph, content: bytes) -> bool:
    return b"Attention" in content


def _found(model: Any) -> Iterator[tuple[Any, list[Any], Any, int]]:
    """Return every unmasked float32 Attention between transpositions.

    Each comes with the nodes that transpose its queries, keys and values, the node that transposes its result, and its
    number of heads.
    """
    graph, floats = model.graph, require("onnx", "cpu").TensorProto.FLOAT
    makers = {name: node for node in graph.node for name in node.output}
    readers = {name: node for node in graph.node for name in node.input}
    uses = Counter(name for node in graph.node for name in node.input)
    types = {value.name: value.type.tensor_type for value in graph.value_info}
    for node in graph.node:
        before = [makers.get(name) for name in node.input]
        after = readers.get(node.output[0])
        kind = types.get(node.input[0]) if before else None
        if (
            node.op_type == "Attention"
            and len(before) == 3
            and kind is not None
            and kind.elem_type == floats
            and uses[node.output[0]] == 1
            and all(map(_turns, (*before, after)))
        ):
            yield node, before, after, kind.shape.dim[1].dim_value


def _turns(node: Any) -> bool:
    return node is not None and node.op_type == "Transpose" and list(node.attribute[0].ints) == TURN


def _rewrite(model: Any) -> Any | None:
    onnx = require("onnx", "cpu")
    graph, node_of = model.graph, onnx.helper.make_node
    found = {node.output[0]: (before, after, heads) for node, before, after, heads in _found(model)}
    if not found:
        return None
    replaced = {name for _, after, _ in found.values() for name in after.output}
    nodes: list[Any] = []

    def constant(name: str, values: list[int]) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    for node in graph.node:
        if replaced.intersection(node.output):
            continue
        if not node.output or node.output[0] not in found:
            nodes.append(node)
            continue
        before, after, heads = found[node.output[0]]
        flat = constant(f"{node.name}/flat", [0, 0, -1])
        split = constant(f"{node.name}/split", [0, 0, heads, -1])
        rows = [f"{name}/rows" for name in node.input]
        for turn, name in zip(before, rows, strict=True):
            nodes.append(node_of("Reshape", [turn.input[0], flat], [name]))
        out = f"{node.output[0]}/rows"
        nodes.append(node_of("MultiHeadAttention", rows, [out], domain=CONTRIB, num_heads=heads))
        nodes.append(node_of("Reshape", [out, split], list(after.output)))
    del graph.node[:]
    graph.node.extend(nodes)
    model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
    return model


def _left(model: Any) -> list[str]:
    return [node.name for node, *_ in _found(model)]


TILED_ATTENTION = GraphPass("tiled attention", _needs, _rewrite, _left, required=False)
