"""Attention by rows gives what the transposed one gives, masked or not, and no transposition is left."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from adacache_engines.bundle.manifest import Graph
from adacache_engines.passes.attention_by_rows import ATTENTION_BY_ROWS
from adacache_engines.passes.graph_pass import rewritten

HEADS, WIDTH, QUERIES, KEYS = 3, 8, 7, 5
ENTRY = Graph(name="attention", path="attention.onnx", inputs=(), outputs=())


def write(
    path: Path, kind: int = TensorProto.FLOAT, masked: bool = False, key_heads: int = HEADS, **changes: Any
) -> Path:
    """Write an attention of ``q`` over ``k`` and ``v``; ``changes`` are the node's attributes."""
    turn = [0, 2, 1, 3]
    tokens, heads = {"q": "queries", "k": "keys", "v": "keys"}, {"q": HEADS, "k": key_heads, "v": key_heads}
    mask = ["mask"] if masked else []
    nodes = [helper.make_node("Transpose", [name], [f"{name}_turned"], perm=turn) for name in tokens]
    turned = [f"{name}_turned" for name in tokens]
    nodes.append(helper.make_node("Attention", turned + mask, ["turned"], name="attention", **changes))
    nodes.append(helper.make_node("Transpose", ["turned"], ["out"], perm=turn))
    value = helper.make_tensor_value_info
    inputs = [value(name, kind, ("batch", tokens[name], heads[name], WIDTH)) for name in tokens]
    between = [value(f"{name}_turned", kind, ("batch", heads[name], tokens[name], WIDTH)) for name in tokens]
    between.append(value("turned", kind, ("batch", HEADS, "queries", WIDTH)))
    if masked:
        inputs.append(value("mask", TensorProto.BOOL, ("batch", 1, "queries", "keys")))
    outputs = [value("out", kind, ("batch", "queries", HEADS, WIDTH))]
    graph = helper.make_graph(nodes, "attention", inputs, outputs, value_info=between)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), str(path))
    return path


def by_rows(path: Path) -> Any:
    content = rewritten(path, ENTRY, [ATTENTION_BY_ROWS], "gpu")
    assert content is not None
    return onnx.load_from_string(content)


def _run(model: Any, given: dict[str, Any]) -> Any:
    results: Any = ReferenceEvaluator(model).run(None, given)
    return np.asarray(results[0])


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked": {"masked": True},
    "scaled": {"scale": 0.5},
    "grouped": {"key_heads": 1},
    "half": {"kind": TensorProto.FLOAT16},
}


@pytest.mark.parametrize("case", CASES)
def test_rows_give_what_transposed_tensors_give(tmp_path: Path, case: str) -> None:
    path = write(tmp_path / "g.onnx", **CASES[case])
    model = by_rows(path)
    onnx.checker.check_model(model, full_check=True)
    assert "Transpose" not in {node.op_type for node in model.graph.node}
    random = np.random.default_rng(0)
    key_heads = CASES[case].get("key_heads", HEADS)
    shapes = {"q": (QUERIES, HEADS), "k": (KEYS, key_heads), "v": (KEYS, key_heads)}
    kind = np.float16 if case == "half" else np.float32
    given: dict[str, Any] = {
        name: random.standard_normal((2, *shape, WIDTH)).astype(kind) for name, shape in shapes.items()
    }
    if case == "masked":
        given["mask"] = random.random((2, 1, QUERIES, KEYS)) > 0.4
    before, after = (_run(m, given) for m in (onnx.load(str(path)), model))
    assert after.shape == (2, QUERIES, HEADS, WIDTH)
    np.testing.assert_allclose(before, after, atol=2e-3 if case == "half" else 1e-6)


def test_a_transposed_tensor_that_is_read_elsewhere_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx")
    model = onnx.load(str(path))
    model.graph.output.append(
        helper.make_tensor_value_info("k_turned", TensorProto.FLOAT, ("batch", HEADS, "keys", WIDTH))
    )
    onnx.save(model, str(path))
    kinds = [node.op_type for node in by_rows(path).graph.node]
    assert kinds.count("Transpose") == 1
    onnx.checker.check_model(by_rows(path), full_check=True)


def test_other_attentions_are_left_alone(tmp_path: Path) -> None:
    """A result that two nodes read, and one that is not transposed."""
    path = write(tmp_path / "g.onnx")
    model = onnx.load(str(path))
    model.graph.node.append(helper.make_node("Abs", ["turned"], ["size"]))
    onnx.save(model, str(path))
    assert rewritten(path, ENTRY, [ATTENTION_BY_ROWS], "gpu") is None
