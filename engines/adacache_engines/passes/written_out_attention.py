"""Write attention out as matrix products and a softmax, by the definition that ONNX itself gives.

TensorRT has no fused attention for float32, nor for narrow heads, and reads the standard operator as a fused one.
"""

from typing import Any

from adacache_engines.bundle.manifest import Graph
from adacache_engines.errors import require
from adacache_engines.passes.graph_pass import GraphPass


def _needs(_graph: Graph, content: bytes) -> bool:
    return b"Attention" in content


def _rewrite(model: Any) -> Any:
    inliner = require("onnx.inliner", "trt-rtx")
    return inliner.inline_selected_functions(model, [("", "Attention")], inline_schema_functions=True)


def _left(model: Any) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == "Attention" and not node.domain]


WRITTEN_OUT_ATTENTION = GraphPass("written-out attention", _needs, _rewrite, _left, required=True)
