"""Kernels that TensorRT-RTX makes of attention, as its builder tells them; no GPU is needed."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import TensorSpec
from adacache_engines.tensorrt import build
from adacache_engines.tensorrt.build import BuildOptions
from adacache_engines.tensorrt.library import CURRENT, TARGETS, InstalledLibrary

pytestmark = pytest.mark.slow  # plans that TensorRT-RTX builds
HEADS, WIDTH = 12, 128
TURN = [0, 2, 1, 3]
RANGES = {"batch": (1, 2, 2), "tokens": (1024, 4096, 8192)}
KERNEL = re.compile(r"^Name: (\S+), LayerType: (\w+),.*StreamId: (\d+)", re.MULTILINE)


def tensor(name: str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float16", axes=("batch", "tokens", HEADS, WIDTH))


def write_attention(path: Path) -> Graph:
    """Write attention as torch exports it: between transpositions from and to (batch, tokens, heads, width)."""
    graph = Graph(name="attention", path=path.name, inputs=tuple(map(tensor, "qkv")), outputs=(tensor("out"),))
    make, half = onnx.helper, onnx.TensorProto.FLOAT16
    nodes = [make.make_node("Transpose", [name], [f"{name}_turned"], perm=TURN) for name in "qkv"]
    nodes.append(make.make_node("Attention", ["q_turned", "k_turned", "v_turned"], ["turned"]))
    nodes.append(make.make_node("Transpose", ["turned"], ["out"], perm=TURN))
    ends = [
        [make.make_tensor_value_info(spec.name, half, spec.axes) for spec in specs]
        for specs in (graph.inputs, graph.outputs)
    ]
    model = make.make_model(make.make_graph(nodes, "attention", *ends), opset_imports=[make.make_opsetid("", 23)])
    onnx.save(model, str(path))
    return graph


def kernels(rtx: InstalledLibrary, path: Path, graph: Graph) -> Iterator[tuple[str, str, int]]:
    """Return name, type and stream of every kernel of a plan, in order."""
    told: list[str] = []

    class Logger(rtx.api.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            rtx.api.ILogger.__init__(self)

        def log(self, _severity: Any, message: str) -> None:
            told.append(message)

    library = replace(rtx, logger=Logger())
    builder = library.api.Builder(library.logger)
    network = build._network(library, builder, path, graph, ())
    config = builder.create_builder_config()
    config.add_optimization_profile(build._profile(library.api, builder, graph, RANGES))
    build._set(library.api, config, library.name, BuildOptions(targets=("8.9",)))
    config.profiling_verbosity = library.api.ProfilingVerbosity.DETAILED
    assert builder.build_serialized_network(network, config) is not None
    for name, kind, stream in KERNEL.findall("\n".join(told)):
        yield name, kind, int(stream)


def test_attention_is_one_kernel_between_four_that_move_its_tensors(rtx: InstalledLibrary, tmp_path: Path) -> None:
    """All kernels are on one stream. The fused one wants (tokens, batch and heads, width), and gives the same shape."""
    graph = write_attention(tmp_path / "attention.onnx")
    made = [found for found in kernels(rtx, tmp_path / "attention.onnx", graph) if found[1] != "shape_call"]
    assert {stream for _, _, stream in made} == {0}
    assert ["mha" in name for name, _, _ in made] == [False, False, False, True, False]
    assert all("Tran" in name for name, _, _ in made if "mha" not in name)


@pytest.mark.parametrize("target", [target for target in TARGETS if target != CURRENT])
@pytest.mark.parametrize("packed_keys", [True, False], ids=["all packed", "queries packed"])
def test_no_target_attends_to_packed_tokens(rtx: InstalledLibrary, target: str, packed_keys: bool) -> None:
    """So the transpositions stay.

    The library takes (all tokens, heads, width) in its network, and its parser reads it as ``TRT_Attention``, but 1.7
    has no kernel for it. Where this fails, a pass can write that operator for every attention without a mask.
    """
    api = rtx.api
    forms = api.AttentionIOForm
    builder = api.Builder(rtx.logger)
    network, config = builder.create_network(0), builder.create_builder_config()
    rows, whole = (4096, HEADS, WIDTH), (2, HEADS, 2048, WIDTH)
    shapes = {"q": rows, "k": rows if packed_keys else whole, "v": rows if packed_keys else whole}
    tensors = [network.add_input(name, api.DataType.HALF, shape) for name, shape in shapes.items()]
    attention = network.add_attention_v2(*tensors, api.AttentionNormalizationOp.SOFTMAX, api.CausalMaskKind.NONE)
    attention.query_form = forms.PACKED_NHD
    attention.key_value_form = forms.PACKED_NHD if packed_keys else forms.PADDED_BHND
    attention.query_lengths = network.add_input("ends", api.DataType.INT32, (3,))
    attention.key_value_lengths = network.add_input("lengths", api.DataType.INT32, (3 if packed_keys else 2,))
    network.mark_output(attention.get_output(0))
    build._set(api, config, rtx.name, BuildOptions(targets=(target,)))
    rtx.errors.clear()
    assert builder.build_serialized_network(network, config) is None
    assert "for which no fused kernel is available on this target" in rtx.complaints()
