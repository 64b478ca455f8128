"""Compute bfloat16 graphs in float32, for ONNX Runtime's CPU provider, which has no bfloat16 arithmetic.

Every operator computes in float32 on bfloat16 inputs and its result is rounded to bfloat16, so values are those
of a device that accumulates in float32; only the speed is not.
"""

from typing import Any

from adacache_engines.bundle.manifest import Graph
from adacache_engines.errors import require
from adacache_engines.passes.graph_pass import GraphPass

TYPELESS = ("Cast", "Constant")  # operators that take and give bfloat16 everywhere


def _needs(graph: Graph, _content: bytes) -> bool:
    return "bfloat16" in {*(spec.dtype for spec in (*graph.inputs, *graph.outputs)), *graph.weight_dtypes}


def _narrow(model: Any, tensor: Any) -> set[str]:
    """Return the names of all bfloat16 values whose type the graph gives."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    narrow = {value.name for value in values if value.type.tensor_type.elem_type == tensor.BFLOAT16}
    return narrow | {value.name for value in model.graph.initializer if value.data_type == tensor.BFLOAT16}


def _rewrite(model: Any) -> Any:
    """Put casts around every operator on bfloat16."""
    onnx = require("onnx", "cpu")
    graph, tensor = model.graph, onnx.TensorProto
    narrow = _narrow(model, tensor)
    nodes, wide = [], {}

    def cast(source: str, target: str, to: int) -> None:
        nodes.append(onnx.helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=to))

    for node in graph.node:
        if node.op_type in TYPELESS:
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if name not in narrow:
                continue
            if name not in wide:
                wide[name] = f"{name}/wide"
                cast(name, wide[name], tensor.FLOAT)
            node.input[index] = wide[name]
        rounded = [name for name in node.output if name in narrow]
        for index, name in enumerate(node.output):
            if name in rounded:
                node.output[index] = f"{name}/exact"
        nodes.append(node)
        for name in rounded:
            cast(f"{name}/exact", name, tensor.BFLOAT16)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _left(model: Any) -> list[str]:
    narrow = _narrow(model, require("onnx", "cpu").TensorProto)
    return [
        node.name
        for node in model.graph.node
        if node.op_type not in TYPELESS and narrow.intersection((*node.input, *node.output))
    ]


WIDENING = GraphPass("bfloat16 in float32", _needs, _rewrite, _left, required=True)
