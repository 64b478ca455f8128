"""Take the keys of attention tile by tile, for ONNX Runtime's CPU provider.

Its kernel of the standard Attention operator writes out all scores, (batch, heads, queries, keys): 5 GB at 480p. Its
own MultiHeadAttention needs a few tiles, and is faster for long sequences; it takes (batch, tokens, heads * width).
"""

from collections.abc import Iterator
from typing import Any

from adacache_engines.errors import require
from adacache_engines.passes.attention_by_rows import TurnedAttention, has_attention, turned_attentions
from adacache_engines.passes.graph_pass import GraphPass, add_integers

CONTRIB = "com.microsoft"


def _found(model: Any) -> Iterator[TurnedAttention]:
    """Return every unmasked float32 Attention between transpositions."""
    floats = require("onnx", "cpu").TensorProto.FLOAT
    return (found for found in turned_attentions(model) if found.element == floats and len(found.node.input) == 3)


def _rewrite(model: Any) -> Any | None:
    onnx = require("onnx", "cpu")
    graph, node_of = model.graph, onnx.helper.make_node
    found = {each.node.output[0]: each for each in _found(model)}
    if not found:
        return None
    replaced = {name for each in found.values() for name in each.after.output}
    nodes: list[Any] = []

    for node in graph.node:
        if replaced.intersection(node.output):
            continue
        if not node.output or node.output[0] not in found:
            nodes.append(node)
            continue
        each = found[node.output[0]]
        before, after, heads = each.before, each.after, each.heads
        name = node.output[0]  # two nodes may read the same tensors
        flat = add_integers(onnx, graph, f"{name}/flat", [0, 0, -1])
        split = add_integers(onnx, graph, f"{name}/split", [0, 0, heads, -1])
        rows = [f"{name}/rows.{place}" for place in range(len(before))]
        for turn, given in zip(before, rows, strict=True):
            nodes.append(node_of("Reshape", [turn.input[0], flat], [given]))
        made = f"{name}/rows"
        nodes.append(node_of("MultiHeadAttention", rows, [made], domain=CONTRIB, num_heads=heads))
        nodes.append(node_of("Reshape", [made, split], list(after.output)))
    del graph.node[:]
    graph.node.extend(nodes)
    model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
    return model


def _left(model: Any) -> list[str]:
    return [each.node.name for each in _found(model)]


TILED_ATTENTION = GraphPass("tiled attention", has_attention, _rewrite, _left, required=False)
