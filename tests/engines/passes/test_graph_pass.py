"""Passes are applied where they are needed, and say what they left."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import TensorSpec
from adacache_engines.errors import EngineError, MissingDependencyError
from adacache_engines.onnxruntime.backend import CPU_PASSES
from adacache_engines.passes.graph_pass import GraphPass, rewritten
from adacache_engines.passes.widening import CUDA_WIDENING, NOT_ON_CUDA, WIDENING

SUM = ("a", "b")


def write(path: Path, kind: int = TensorProto.BFLOAT16) -> Graph:
    """Write a graph of (a + b) * b; return its entry."""
    values = {name: helper.make_tensor_value_info(name, kind, ("n",)) for name in ("a", "b", "sum", "out")}
    nodes = [
        helper.make_node("Add", SUM, ["sum"], name="add"),
        helper.make_node("Mul", ["sum", "b"], ["out"], name="mul"),
    ]
    graph = helper.make_graph(nodes, "g", [values["a"], values["b"]], [values["out"]], value_info=[values["sum"]])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), str(path))
    dtype = "bfloat16" if kind == TensorProto.BFLOAT16 else "float32"
    spec = {name: TensorSpec(name=name, dtype=dtype, axes=("n",)) for name in (*SUM, "out")}
    return Graph(name="g", path=path.name, inputs=(spec["a"], spec["b"]), outputs=(spec["out"],))


def replacing(target: str, left: Sequence[str] = (), required: bool = True) -> GraphPass:
    """Return a pass that makes every Add a ``target``."""

    def rewrite(model: Any) -> Any:
        found = [node for node in model.graph.node if node.op_type == "Add"]
        for node in found:
            node.op_type = target
        return model if found else None

    return GraphPass(f"to {target}", lambda _graph, content: b"Add" in content, rewrite, lambda _: left, required)


def operators(model: bytes | None) -> list[str]:
    assert model is not None
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


def test_passes_come_one_after_another(tmp_path: Path) -> None:
    graph = write(tmp_path / "g.onnx")
    model = rewritten(tmp_path / "g.onnx", graph, [replacing("Sub"), replacing("Div")], "cpu")
    assert operators(model) == ["Sub", "Mul"]  # the second found no Add any more
    assert operators((tmp_path / "g.onnx").read_bytes()) == ["Add", "Mul"]


def test_a_graph_that_no_pass_needs_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = write(tmp_path / "g.onnx", TensorProto.FLOAT)
    monkeypatch.setitem(sys.modules, "onnx", None)  # so nothing is read that need not be
    assert rewritten(tmp_path / "g.onnx", graph, CPU_PASSES, "cpu") is None


def test_what_a_pass_leaves_is_named(tmp_path: Path) -> None:
    graph = write(tmp_path / "g.onnx")
    with pytest.raises(EngineError, match=r"the pass to Sub did not replace add in .*g\.onnx"):
        rewritten(tmp_path / "g.onnx", graph, [replacing("Sub", left=["add"])], "cpu")


def test_without_onnx_only_a_required_pass_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = write(tmp_path / "g.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert rewritten(tmp_path / "g.onnx", graph, [replacing("Sub", required=False)], "cpu") is None
    with pytest.raises(MissingDependencyError, match=r"adacache-export\[cpu\]"):
        rewritten(tmp_path / "g.onnx", graph, [replacing("Sub")], "cpu")


def test_widening_rounds_after_every_operator(tmp_path: Path) -> None:
    model = rewritten(tmp_path / "g.onnx", write(tmp_path / "g.onnx"), [WIDENING], "cpu")
    assert model is not None
    random = np.random.default_rng(0)
    given = {name: random.standard_normal(64).astype(ml_dtypes.bfloat16) for name in SUM}
    (out,) = ReferenceEvaluator(onnx.load_from_string(model)).run(None, given)
    a, b = (given[name].astype(np.float32) for name in SUM)
    rounded = (a + b).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(
        np.asarray(out, np.float32), (rounded * b).astype(ml_dtypes.bfloat16).astype(np.float32)
    )
    assert not WIDENING.left(onnx.load_from_string(model))
    assert list(WIDENING.left(onnx.load(str(tmp_path / "g.onnx")))) == ["add", "mul"]


def test_widening_for_cuda_takes_the_operators_without_a_kernel_alone(tmp_path: Path) -> None:
    """A padding by zeros computes the same values in float32; the product beside it stays in bfloat16."""
    graph = write(tmp_path / "g.onnx")
    model = onnx.load(str(tmp_path / "g.onnx"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 2], np.int64), "widths"))
    model.graph.node[0].CopyFrom(helper.make_node("Pad", ["a", "widths"], ["sum"], name="pad"))
    model.graph.node[1].input[1] = "sum"
    onnx.save(model, str(tmp_path / "g.onnx"))
    made = rewritten(tmp_path / "g.onnx", graph, [CUDA_WIDENING], "gpu")
    assert operators(made) == ["Cast", "Pad", "Cast", "Mul"]
    assert made is not None
    given = {name: np.arange(4).astype(ml_dtypes.bfloat16) for name in SUM}
    (out,) = ReferenceEvaluator(onnx.load_from_string(made)).run(None, given)
    np.testing.assert_array_equal(np.asarray(out, np.float32), [0, 1, 4, 9, 0, 0])
    assert list(CUDA_WIDENING.left(model)) == ["pad"]


def test_widening_for_cuda_leaves_graphs_that_it_can_run(tmp_path: Path) -> None:
    assert rewritten(tmp_path / "g.onnx", write(tmp_path / "g.onnx"), [CUDA_WIDENING], "gpu") is None
    assert not NOT_ON_CUDA & {"MatMul", "Attention", "RMSNormalization", "LayerNormalization", "Conv", "Softmax"}
