"""A model in the shape of LPIPS, of three nodes."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from adacache_tune.comparison.quality import SMALLEST_SIDE


def write_lpips(path: Path, outputs: int = 1, keep: bool = False, smallest: int | None = None) -> None:
    """A model of two images that gives their mean absolute difference."""
    images = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in ("a", "b")]
    axes = helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3])
    nodes = [
        helper.make_node("Sub", ["a", "b"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["size"]),
        helper.make_node("ReduceMean", ["size", *([] if keep else ["axes"])], ["distance"], keepdims=0),
    ]
    shown = [("distance", [] if keep else ["n"]), ("size", ["n", 3, "h", "w"])][:outputs]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shown]
    graph = helper.make_graph(nodes, "lpips", images, values, [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if smallest:
        helper.set_model_props(model, {SMALLEST_SIDE: str(smallest)})
    onnx.save(model, path)
