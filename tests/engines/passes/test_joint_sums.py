"""Joint sums give what each sum gave, and TensorRT-RTX makes one kernel of them that reads its tensors once."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import DType, TensorSpec
from adacache_engines.passes.graph_pass import rewritten
from adacache_engines.passes.joint_sums import JOINT_SUMS
from adacache_engines.tensorrt import build
from adacache_engines.tensorrt.build import BuildOptions, build_plan
from adacache_engines.tensorrt.library import open_library
from adacache_runtime.caching.signals.change import CHANGE
from adacache_runtime.caching.signals.motion import MOTION
from adacache_runtime.caching.signals.new_magnitude import NEW_MAGNITUDE
from adacache_runtime.caching.signals.signal import Signal

WIDTH = 1152
HIDDEN = ("batch", "patch_frames", "tokens", WIDTH)
RANGES = {
    "batch": (1, 2, 2),
    "patch_frames": (2, 30, 30),
    "tokens": (16, 3600, 3600),
    "pairs": (1, 29, 29),
}


def write(path: Path, signal: Signal, dtype: DType = "float16") -> Graph:
    """Write a signal's graph for hidden states; return its entry."""

    def given(name: str) -> TensorSpec:
        if name in ("earlier", "later"):
            return TensorSpec(name=name, dtype="int64", axes=("pairs",))
        return TensorSpec(name=name, dtype=dtype, axes=HIDDEN)

    inputs = tuple(map(given, signal.inputs))
    outputs = tuple(TensorSpec(name=number, dtype="float32", axes=("batch",)) for number in signal.numbers)

    def text(specs: tuple[TensorSpec, ...]) -> str:
        types = {"float32": "float"}
        return ", ".join(f"{types.get(s.dtype, s.dtype)}[{','.join(map(str, s.axes))}] {s.name}" for s in specs)

    opset = '<ir_version: 11, opset_import: ["" : 23]>'
    nodes = signal.nodes_in("hidden")
    onnx.save(onnx.parser.parse_model(f"{opset} g ({text(inputs)}) => ({text(outputs)}) {{ {nodes} }}"), str(path))
    return Graph(name="signal", path=path.name, inputs=inputs, outputs=outputs)


@pytest.mark.parametrize("signal", [CHANGE, MOTION], ids=lambda signal: signal.name)
def test_each_sum_is_what_it_was(tmp_path: Path, signal: Signal) -> None:
    graph = write(tmp_path / "g.onnx", signal, "float32")
    made = rewritten(tmp_path / "g.onnx", graph, [JOINT_SUMS], "trt-rtx")
    assert made is not None
    model = onnx.load_from_string(made)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node].count("ReduceSum") == 1
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {"earlier": np.array([0, 1]), "later": np.array([1, 2])}
    arrays |= {name: random.standard_normal((2, 3, 5, WIDTH), np.float32) for name in ("cached", "new")}
    given: dict[str, Any] = {name: arrays[name] for name in signal.inputs}
    wanted = signal.in_numpy("hidden", given)
    for number, value in zip(signal.numbers, ReferenceEvaluator(model).run(None, given), strict=True):
        np.testing.assert_allclose(np.asarray(value), wanted[number], rtol=1e-5)


def test_a_tensor_that_is_not_finite_spoils_only_its_own_sum(tmp_path: Path) -> None:
    graph = write(tmp_path / "g.onnx", CHANGE, "float32")
    made = rewritten(tmp_path / "g.onnx", graph, [JOINT_SUMS], "trt-rtx")
    assert made is not None
    given: dict[str, Any] = {name: np.ones((1, 2, 2, WIDTH), np.float32) for name in CHANGE.inputs}
    given["new"][0, 0, 0, 0] = np.nan
    change, magnitude = map(np.asarray, ReferenceEvaluator(onnx.load_from_string(made)).run(None, given))
    assert np.isnan(change).all()
    assert magnitude == [4 * WIDTH]


def test_a_single_sum_and_a_sum_that_is_read_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    assert rewritten(path, write(path, NEW_MAGNITUDE), [JOINT_SUMS], "trt-rtx") is None
    graph = write(path, CHANGE, "float32")
    model = onnx.load(str(path))
    model.graph.node[-1].output[0] = "whole"
    model.graph.node.append(onnx.helper.make_node("Add", ["whole", "change"], ["magnitude"]))
    onnx.save(model, str(path))
    assert rewritten(path, graph, [JOINT_SUMS], "trt-rtx") is None


@pytest.mark.slow
@pytest.mark.parametrize("signal", [CHANGE, MOTION], ids=lambda signal: signal.name)
def test_tensorrt_makes_one_kernel_of_all_sums(tmp_path: Path, signal: Signal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan names a single kernel that sums; how fast it is only a GPU can show."""
    library = open_library("tensorrt-rtx")
    path = tmp_path / "g.onnx"
    graph = write(path, signal)

    def summing() -> set[bytes]:
        """Return the kernels of the plan that sum."""
        plan = build_plan(library, path, graph, [RANGES], BuildOptions(targets=("8.9",)), fused=True)
        return set(re.findall(rb"__myl_\w*Sum_0x[0-9a-f]+", bytes(plan)))

    assert len(summing()) == 1
    monkeypatch.setattr(build, "PASSES", ())
    assert len(summing()) == 2, "TensorRT does without the pass"
