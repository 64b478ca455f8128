"""Attention by tiles gives what the standard operator gives, for any length, and leaves other graphs alone."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from adacache_engines.bundle.manifest import Graph
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_engines.passes.graph_pass import rewritten
from adacache_engines.passes.tiled_attention import CONTRIB, TILED_ATTENTION

HEADS, WIDTH = 3, 8
ENTRY = Graph(name="attention", path="attention.onnx", inputs=(), outputs=())
AXES = ("batch", "tokens", HEADS, WIDTH)
TURNED = ("batch", HEADS, "tokens", WIDTH)


def attention(
    path: Path, masked: bool = False, turn: tuple[int, ...] = (0, 2, 1, 3), kind: int = TensorProto.FLOAT
) -> Path:
    names = ("q", "k", "v")
    mask = ["mask"] if masked else []
    nodes = [helper.make_node("Transpose", [name], [f"{name}_turned"], perm=turn) for name in names]
    nodes.append(
        helper.make_node("Attention", [f"{name}_turned" for name in names] + mask, ["turned"], name="attention")
    )
    nodes.append(helper.make_node("Transpose", ["turned"], ["out"], perm=turn))
    inputs = [helper.make_tensor_value_info(name, kind, AXES) for name in names]
    if masked:
        inputs.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, ("tokens", "tokens")))
    outputs = [helper.make_tensor_value_info("out", kind, AXES)]
    between = [helper.make_tensor_value_info(f"{name}_turned", kind, TURNED) for name in names]
    graph = helper.make_graph(nodes, "attention", inputs, outputs, value_info=between)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), str(path))
    return path


def tiled(path: Path) -> bytes | None:
    return rewritten(path, ENTRY, [TILED_ATTENTION], "cpu")


def assert_alike(path: Path, tokens: int) -> None:
    """Check that a file and its rewritten graph give the same on random tensors."""
    model = tiled(path)
    assert model is not None
    kinds = [node.op_type for node in onnx.load_from_string(model).graph.node]
    assert "MultiHeadAttention" in kinds
    assert "Attention" not in kinds
    random = np.random.default_rng(0)
    feed = {name: 3 * random.standard_normal((2, tokens, HEADS, WIDTH), np.float32) for name in ("q", "k", "v")}
    OrtBackend(path.parent)  # the process has its thread pool from here on, whichever test is first
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    results = [
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, feed)
        for source in (str(path), model)
    ]
    for expected, made in zip(*results, strict=True):
        np.testing.assert_allclose(np.asarray(made), np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_tiles_give_what_the_standard_operator_gives(tmp_path: Path, tokens: int) -> None:
    assert_alike(attention(tmp_path / "attention.onnx"), tokens)


def test_two_attentions_may_share_their_queries(tmp_path: Path) -> None:
    """As in cross attention to a text and to an image."""
    path = attention(tmp_path / "attention.onnx")
    model = onnx.load(str(path))
    shared = [f"{name}_turned" for name in ("q", "v", "k")]
    model.graph.node.append(helper.make_node("Attention", shared, ["turned_2"], name="attention_2"))
    model.graph.node.append(helper.make_node("Transpose", ["turned_2"], ["out_2"], perm=(0, 2, 1, 3)))
    model.graph.output.append(helper.make_tensor_value_info("out_2", TensorProto.FLOAT, AXES))
    onnx.save(model, str(path))
    assert_alike(path, 7)


def test_a_mask_other_axes_and_half_precision_stay_with_the_standard_operator(tmp_path: Path) -> None:
    assert tiled(attention(tmp_path / "mask.onnx", masked=True)) is None
    assert tiled(attention(tmp_path / "axes.onnx", turn=(0, 1, 2, 3))) is None
    assert tiled(attention(tmp_path / "half.onnx", kind=TensorProto.FLOAT16)) is None


def test_the_file_stays_standard(tmp_path: Path) -> None:
    path = attention(tmp_path / "attention.onnx")
    before = path.read_bytes()
    tiled(path)
    assert path.read_bytes() == before
    assert CONTRIB not in {entry.domain for entry in onnx.load(str(path)).opset_import}
