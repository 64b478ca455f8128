"""Give attention its tensors as rows, (batch, tokens, heads * width), for ONNX Runtime's CUDA provider.

The standard operator takes them so, too. Its kernels on CUDA read rows: given (batch, heads, tokens, width), ONNX
Runtime 1.31.1 turns queries, keys and values back before the kernel and the result after it, beside the four
transpositions of the graph. With rows, none of these is left.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from adacache_engines.bundle.manifest import Graph
from adacache_engines.errors import require
from adacache_engines.passes.graph_pass import GraphPass, add_integers

TURN = [0, 2, 1, 3]  # (batch, tokens, heads, width) to (batch, heads, tokens, width), and back


@dataclass(frozen=True)
class TurnedAttention:
    """An Attention between transpositions.

    Attributes:
        node: the node.
        before: nodes that transpose its queries, keys and values.
        after: node that transposes its result.
        heads, key_heads: numbers of heads of its queries, and of its keys and values.
        element: ONNX's number of the type of its queries.
    """

    node: Any
    before: tuple[Any, Any, Any]
    after: Any
    heads: int
    key_heads: int
    element: int


def turned_attentions(model: Any) -> Iterator[TurnedAttention]:
    """Return every standard Attention whose tensors are transposed just before it, and whose result just after it."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    readers = {name: node for node in graph.node for name in node.input}
    uses = Counter(name for node in graph.node for name in node.input)
    types = {value.name: value.type.tensor_type for value in graph.value_info}
    for node in graph.node:
        if node.op_type != "Attention" or node.domain or len(node.output) != 1 or uses[node.output[0]] != 1:
            continue
        queries, keys, values = (makers.get(name) for name in node.input[:3])
        after, kinds = readers[node.output[0]], [types.get(name) for name in node.input[:2]]
        if not all(map(_turns, (queries, keys, values, after))) or None in kinds:
            continue
        heads, key_heads = (kind.shape.dim[1].dim_value for kind in kinds)  # type: ignore[union-attr]
        if heads and key_heads:
            element = kinds[0].elem_type  # type: ignore[union-attr]
            yield TurnedAttention(node, (queries, keys, values), after, heads, key_heads, element)


def _turns(node: Any) -> bool:
    return node is not None and node.op_type == "Transpose" and list(node.attribute[0].ints) == TURN


def has_attention(_graph: Graph, content: bytes) -> bool:
    """Return whether a graph's file may have an Attention, without parsing it."""
    return b"Attention" in content


def _rewrite(model: Any) -> Any | None:
    onnx = require("onnx", "gpu")
    graph, node_of = model.graph, onnx.helper.make_node
    found = {each.node.output[0]: each for each in turned_attentions(model)}
    if not found:
        return None
    replaced = {each.after.output[0] for each in found.values()}
    read = Counter(name for node in graph.node for name in node.input)
    nodes: list[Any] = []
    turned: list[Any] = []

    for node in graph.node:
        if replaced.intersection(node.output):
            continue
        each = found.get(node.output[0]) if node.output else None
        if each is None:
            nodes.append(node)
            continue
        out = node.output[0]
        flat = add_integers(onnx, graph, f"{out}/flat", [0, 0, -1])
        split = add_integers(onnx, graph, f"{out}/split", [0, 0, each.heads, -1])
        for place, turn in enumerate(each.before):
            rows = f"{out}/rows.{place}"
            nodes.append(node_of("Reshape", [turn.input[0], flat], [rows]))
            read[node.input[place]] -= 1
            node.input[place] = rows
        turned += each.before
        heads = {"q_num_heads": each.heads, "kv_num_heads": each.key_heads}
        node.attribute.extend(onnx.helper.make_attribute(*entry) for entry in heads.items())
        nodes += [node, node_of("Reshape", [out, split], list(each.after.output))]
    outputs = {value.name for value in graph.output}
    unread = {turn.output[0] for turn in turned if not read[turn.output[0]]} - outputs
    shapes = [value for value in graph.value_info if value.name not in unread | set(found)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(node for node in nodes if unread.isdisjoint(node.output))
    graph.value_info.extend(shapes)
    return model


def _left(model: Any) -> list[str]:
    return [each.node.name for each in turned_attentions(model)]


ATTENTION_BY_ROWS = GraphPass("attention by rows", has_attention, _rewrite, _left, required=False)
