"""Take sums over the same axes in one reduction, for TensorRT, which makes a kernel of each reduction.

A signal gives several sums of the same tensors, such as sum |a - b| and sum |a|. TensorRT fuses what is element-wise
into a reduction, but not two reductions into one, so each reads its tensors again. Here the terms of all sums of an
element become neighbours, along a new last axis, and one reduction keeps that axis. Each sum has the terms that it had.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from adacache_engines.bundle.manifest import Graph
from adacache_engines.errors import require
from adacache_engines.passes.graph_pass import GraphPass

SUM = b"ReduceSum"


def _needs(_graph: Graph, content: bytes) -> bool:
    return content.count(SUM) > 1


def _shape(value: Any) -> tuple[object, ...]:
    return tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)


def _found(model: Any) -> Iterator[tuple[list[Any], int]]:
    """Return sums over the same axes of float32 tensors of one known shape, and the number of their axes."""
    onnx = require("onnx", "trt-rtx")
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = {value.name: value for value in (*graph.input, *graph.output, *graph.value_info)}
    between = {name for node in graph.node for name in node.input}  # an output that is read must stay where it is made
    groups: dict[object, list[Any]] = defaultdict(list)
    for node in model.graph.node:
        term = values.get(node.input[0]) if node.op_type == "ReduceSum" and len(node.input) == 2 else None
        kept = [entry.i for entry in node.attribute if entry.name == "keepdims"]
        if term is None or kept != [0] or node.output[0] in between:
            continue
        shape = _shape(term)
        if all(shape) and term.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            groups[node.input[1], shape].append(node)
    for (_, shape), nodes in groups.items():  # type: ignore[misc]
        if len(nodes) > 1:
            yield nodes, len(shape)


def _rewrite(model: Any) -> Any | None:
    onnx = require("onnx", "trt-rtx")
    graph, node_of = model.graph, onnx.helper.make_node
    found = list(_found(model))
    if not found:
        return None
    replaced = {node.output[0] for nodes, _ in found for node in nodes}
    kept = [node for node in graph.node if replaced.isdisjoint(node.output)]
    for index, (nodes, rank) in enumerate(found):
        name = f"joint_sums.{index}"
        for place, axis in (("last", rank), ("tail", -1)):
            kept.append(node_of("Constant", [], [f"{name}.{place}"], value_ints=[axis]))
        terms = [f"{node.output[0]}/terms" for node in nodes]
        for node, term in zip(nodes, terms, strict=True):
            kept.append(node_of("Unsqueeze", [node.input[0], f"{name}.last"], [term]))
        kept.append(node_of("Concat", terms, [f"{name}.terms"], axis=rank))
        kept.append(node_of("ReduceSum", [f"{name}.terms", nodes[0].input[1]], [f"{name}.sums"], keepdims=0))
        sums = [f"{node.output[0]}/sum" for node in nodes]
        kept.append(node_of("Split", [f"{name}.sums"], sums, axis=-1, num_outputs=len(sums)))
        for node, joint in zip(nodes, sums, strict=True):
            kept.append(node_of("Squeeze", [joint, f"{name}.tail"], [node.output[0]]))
    del graph.node[:]
    graph.node.extend(kept)
    return model


def _left(model: Any) -> list[str]:
    return [node.output[0] for nodes, _ in _found(model) for node in nodes]


JOINT_SUMS = GraphPass("joint sums", _needs, _rewrite, _left, required=False)
