"""One plan of TensorRT-RTX: what cannot be built, is stopped, or is refused."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest

from adacache_engines.bundle.files import read_manifest
from adacache_engines.bundle.manifest import Manifest
from adacache_engines.bundle.shape_profiles import ShapeProfile
from adacache_engines.errors import EngineError, InputError
from adacache_engines.passes.graph_pass import rewritten
from adacache_engines.tensorrt import build as trt_build
from adacache_engines.tensorrt.build import BuildOptions, build_plan, check_options
from adacache_engines.tensorrt.library import InstalledLibrary
from tests.helpers.gpu.built_plans import profiles

pytestmark = pytest.mark.slow  # an export, and plans that TensorRT-RTX builds


def one(compiled: Path, stage: str) -> tuple[Path, Manifest, ShapeProfile]:
    (profile,) = profiles(compiled).values()
    return compiled / "onnx" / f"{stage}.onnx", read_manifest(compiled), profile


def graphs(manifest: Manifest) -> Mapping[str, object]:
    return {graph.name: graph for graph in manifest.graphs()}


def test_attention_that_is_not_fused_is_named(bare: Path, rtx: InstalledLibrary) -> None:
    path, manifest, profile = one(bare, "spatial.00")
    graph = next(graph for graph in manifest.graphs() if graph.name == "spatial.00")
    written_out = rewritten(path, graph, trt_build.UNFUSED_PASSES, "trt-rtx")
    assert written_out
    path.write_bytes(written_out)
    with pytest.raises(EngineError, match=r"spatial\.00: these attentions did not become fused layers: .*[Ss]oftmax"):
        build_plan(rtx, path, graph, [profile], BuildOptions(), fused=True)
    build_plan(rtx, path, graph, [profile], BuildOptions(), fused=False)


def test_other_tensors_than_the_manifests(compiled: Path, rtx: InstalledLibrary) -> None:
    path, manifest, profile = one(compiled, "add")
    graph = manifest.arithmetic["add"]
    wrong = graph.inputs[0].model_copy(update={"dtype": "float32"})
    changed = graph.model_copy(update={"inputs": (wrong, *graph.inputs[1:])})
    with pytest.raises(EngineError, match="add: tensorrt-rtx reads the tensors"):
        build_plan(rtx, path, changed, [profile], BuildOptions(), fused=False)


def test_a_graph_that_cannot_be_read_or_built(bare: Path, rtx: InstalledLibrary) -> None:
    path, manifest, profile = one(bare, "final")
    graph = next(graph for graph in manifest.graphs() if graph.name == "final")
    with pytest.raises(EngineError, match="cannot build final: "):
        build_plan(rtx, path, graph, [profile | {"tokens": (7, 7, 7)}], BuildOptions(), fused=False)
    model = onnx.load(str(path), load_external_data=False)
    model.graph.node[0].op_type = "Unheard"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match=r"cannot read .*final\.onnx: .*Unheard"):
        build_plan(rtx, path, graph, [profile], BuildOptions(), fused=False)


def test_a_build_can_be_stopped_inside_a_plan(compiled: Path, rtx: InstalledLibrary) -> None:
    path, manifest, profile = one(compiled, "spatial.00")
    graph = next(graph for graph in manifest.graphs() if graph.name == "spatial.00")
    with pytest.raises(EngineError, match="was stopped"):
        build_plan(rtx, path, graph, [profile], BuildOptions(), fused=True, stopped=lambda: True)


@pytest.mark.parametrize(
    ("library", "options", "message"),
    [
        ("tensorrt-rtx", {"optimization_level": 3}, "tensorrt-rtx does not support: --optimization-level"),
        ("tensorrt", {"targets": ("8.9",)}, "tensorrt does not support: --targets"),
        ("tensorrt-rtx", {"targets": ("9.9",)}, "target 9.9 is unknown; known: 7.5"),
        ("tensorrt-rtx", {"targets": ("8.9", "current")}, "target current stands alone"),
        ("tensorrt-rtx", {"workspace_mb": 0}, "workspace 0 MB is not possible"),
        ("tensorrt", {"optimization_level": 6}, "optimization level 6 is not possible"),
    ],
)
def test_options_that_are_refused(library: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_options(library, dataclasses.replace(BuildOptions(), **options))
