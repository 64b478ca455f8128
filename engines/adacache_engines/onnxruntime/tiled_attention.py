"""Gives ONNX Runtime's CPU provider an attention that takes the keys tile by tile.

Its kernel of the standard Attention operator writes out all scores, (batch, heads, queries, keys): 5 GB at 480p. Its
own MultiHeadAttention needs a few tiles, and is faster for long sequences; it takes (batch, tokens, heads * width).
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from adacache_engines.errors import MissingDependencyError, require

TURN = [0, 2, 1, 3]  # (batch, tokens, heads, width) to (batch, heads, tokens, width), and back
CONTRIB = "com.microsoft"


def tiled(path: Path) -> bytes | None:
    """The graph in ``path`` with tiles for every unmasked float32 Attention that lies between transpositions; external
    data stay where they are. None if there is none, or no onnx to rewrite it with: the graph then runs as it is.
    """
    if b"Attention" not in path.read_bytes():
        return None
    try:
        onnx = require("onnx", "cpu")
    except MissingDependencyError:
        return None
    model = onnx.load(str(path), load_external_data=False)
    graph, node_of = model.graph, onnx.helper.make_node
    makers = {name: node for node in graph.node for name in node.output}
    readers = {name: node for node in graph.node for name in node.input}
    uses = Counter(name for node in graph.node for name in node.input)
    types = {value.name: value.type.tensor_type for value in graph.value_info}
    nodes: list[Any] = []
    replaced: set[str] = set()

    def constant(name: str, values: list[int]) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    for node in graph.node:
        if replaced.intersection(node.output):
            continue
        before: list[Any] = [makers.get(name) for name in node.input]
        after: Any = readers.get(node.output[0])
        kind = types.get(node.input[0]) if before else None
        if (
            node.op_type != "Attention"
            or len(before) != 3
            or kind is None
            or kind.elem_type != onnx.TensorProto.FLOAT
            or uses[node.output[0]] != 1
            or not all(map(_turns, (*before, after)))
        ):
            nodes.append(node)
            continue
        heads = kind.shape.dim[1].dim_value
        flat = constant(f"{node.name}/flat", [0, 0, -1])
        split = constant(f"{node.name}/split", [0, 0, heads, -1])
        rows = [f"{name}/rows" for name in node.input]
        for turn, name in zip(before, rows, strict=True):
            nodes.append(node_of("Reshape", [turn.input[0], flat], [name]))
        out = f"{node.output[0]}/rows"
        nodes.append(node_of("MultiHeadAttention", rows, [out], domain=CONTRIB, num_heads=heads))
        nodes.append(node_of("Reshape", [out, split], list(after.output)))
        replaced.update(after.output)
    if not replaced:
        return None
    del graph.node[:]
    graph.node.extend(nodes)
    model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
    result: bytes = model.SerializeToString()
    return result


def _turns(node: Any) -> bool:
    return node is not None and node.op_type == "Transpose" and list(node.attribute[0].ints) == TURN
