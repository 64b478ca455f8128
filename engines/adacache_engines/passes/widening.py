"""Compute bfloat16 operators in float32, for ONNX Runtime's providers, which lack bfloat16 kernels.

The CPU's has no bfloat16 arithmetic at all, CUDA's lacks it for some operators. An operator computes in float32 on
bfloat16 inputs and its result is rounded to bfloat16, so values are those of a device that accumulates in float32;
only the speed is not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from adacache_engines.bundle.manifest import Graph
from adacache_engines.errors import require
from adacache_engines.passes.graph_pass import GraphPass

TYPELESS = ("Cast", "Constant")  # operators that take and give bfloat16 everywhere
# Operators for which the CUDA provider of onnxruntime-gpu 1.31.1 takes float32 and float16 and not bfloat16, found by
# opening a session with each of them. Where neither provider has a kernel, a graph cannot be loaded.
NOT_ON_CUDA = frozenset((
    "Ceil", "ConvTranspose", "CumSum", "Einsum", "Equal", "Floor", "Greater", "GreaterOrEqual", "InstanceNormalization",
    "Less", "LessOrEqual", "Log", "Pad", "Reciprocal", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMin",
    "ReduceProd", "Resize", "Round", "TopK",
))  # fmt: skip

Widened = Callable[[str], bool]  # whether operators of a type compute in float32


def _has_bfloat16(graph: Graph, _content: bytes) -> bool:
    return "bfloat16" in {*(spec.dtype for spec in (*graph.inputs, *graph.outputs)), *graph.weight_dtypes}


def _may_lack_kernels(graph: Graph, content: bytes) -> bool:
    return _has_bfloat16(graph, content) and any(name.encode() in content for name in NOT_ON_CUDA)


def _every(operator: str) -> bool:
    return operator not in TYPELESS


def _narrow(model: Any, tensor: Any) -> set[str]:
    """Return the names of all bfloat16 values whose type the graph gives."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    narrow = {value.name for value in values if value.type.tensor_type.elem_type == tensor.BFLOAT16}
    return narrow | {value.name for value in model.graph.initializer if value.data_type == tensor.BFLOAT16}


def _touches(node: Any, names: set[str]) -> bool:
    return not names.isdisjoint((*node.input, *node.output))


def _rewrite(model: Any, widened: Widened) -> Any | None:
    """Put casts around the operators that are to compute in float32."""
    onnx = require("onnx", "cpu")
    graph, tensor = model.graph, onnx.TensorProto
    narrow = _narrow(model, tensor)
    if not any(widened(node.op_type) and _touches(node, narrow) for node in graph.node):
        return None
    nodes, wide = [], {}

    def cast(source: str, target: str, to: int) -> None:
        nodes.append(onnx.helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=to))

    for node in graph.node:
        if not widened(node.op_type):
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


def _left(model: Any, widened: Widened) -> list[str]:
    narrow = _narrow(model, require("onnx", "cpu").TensorProto)
    return [node.name for node in model.graph.node if widened(node.op_type) and _touches(node, narrow)]


WIDENING = GraphPass(
    "bfloat16 in float32",
    _has_bfloat16,
    partial(_rewrite, widened=_every),
    partial(_left, widened=_every),
    required=True,
)
CUDA_WIDENING = GraphPass(
    "bfloat16 in float32 where CUDA lacks it",
    _may_lack_kernels,
    partial(_rewrite, widened=NOT_ON_CUDA.__contains__),
    partial(_left, widened=NOT_ON_CUDA.__contains__),
    required=True,
)
