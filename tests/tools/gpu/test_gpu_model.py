"""The model that tools/gpu_check.py measures, and the measuring on a CPU."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from adacache_engines.bundle.files import open_bundle, read_manifest
from adacache_engines.errors import BundleError, EngineError, InputError
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.convert import convert
from adacache_export.options import Options
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.reports.flops import flops
from adacache_runtime.settled import settle
from tests.helpers.gpu_check_result import RESULT
from tools.gpu import benchmark as benchmark_module
from tools.gpu.benchmark import Run, benchmark
from tools.gpu.contenders import open_contenders, with_reason
from tools.gpu.measure import _Generation, measure_calls
from tools.gpu.model import LARGE, PROBE, Preparation, prepare
from tools.gpu.report import markdown
from tools.gpu.requests import sized_request
from tools.gpu.skeleton import deepen, fill, strip
from tools.gpu.torch_backend import TorchBackend
from tools.speed.calls import EVERY_THIRD
from tools.speed.checkpoint import config_of, write_checkpoint
from tools.speed.size import Size

ROOT = Path(__file__).parents[3]
TINY = Size(depth=2, width=32, heads=2, caption_width=8, tokens=16, text=3)
pytestmark = pytest.mark.slow  # an export
Once = Callable[[str, Callable[[Path], object]], Path]


# the large model


@pytest.fixture(scope="session")
def pairs(once: Once) -> Path:
    """Two pairs of tiny blocks, in float32. Tests must not change it."""

    def build(folder: Path) -> None:
        checkpoint = folder.with_suffix(".safetensors")
        write_checkpoint(checkpoint, config_of(TINY))
        convert(checkpoint, folder, Options(precision="fp32", probes=(PROBE,)))

    return once("two-pairs", build)


@pytest.fixture
def large(pairs: Path, tmp_path: Path) -> Path:
    """One to change."""
    return Path(shutil.copytree(pairs, tmp_path / LARGE))


def test_weights_are_drawn_again_where_the_model_is_run(large: Path) -> None:
    before = read_manifest(large)
    shapes = {name: (value.shape, value.dtype) for name, value in weights(large).items()}
    strip(large)
    assert sum(path.stat().st_size for path in large.rglob("*")) < 1e6
    with pytest.raises(BundleError, match=r"weights.safetensors is missing"):
        open_bundle(large)
    fill(large)
    after = open_bundle(large).manifest
    assert before.files[before.weights].sha256 != after.files[after.weights].sha256
    drawn = weights(large)
    assert {name: (value.shape, value.dtype) for name, value in drawn.items()} == shapes
    assert (drawn["spatial_blocks.0.attn.q_norm.weight"] == 1).all()
    assert 0.4 < drawn["spatial_blocks.0.mlp.fc2.weight"].std() * 128**0.5 < 0.6
    with pytest.raises(InputError, match="is no stripped bundle"):
        fill(large)


def weights(folder: Path) -> Mapping[str, Any]:
    return load_file(folder / "onnx" / "weights.safetensors")


def test_a_deep_model_runs_its_pairs_again_and_again(large: Path) -> None:
    """On two backends, so what PyTorch is measured on is what the engines are."""
    deepen(large, 5)
    bundle = open_bundle(large)
    blocks = [stage.graph for stage in bundle.manifest.stages if stage.block]
    assert [graph.name for graph in blocks] == [f"{kind}.{i:02d}" for i in range(5) for kind in ("spatial", "temporal")]
    assert {graph.path for graph in blocks if graph.name.startswith("temporal")} == {
        "onnx/temporal.00.onnx", "onnx/temporal.01.onnx",
    }  # fmt: skip
    assert bundle.manifest.sites("default") == ("temporal.2.attn",)
    request = replace(TINY.request(), steps=8, policy=EVERY_THIRD)
    given = Pipeline(bundle, TorchBackend(bundle, "cpu")).generate(request)
    wanted = Pipeline(bundle, OrtBackend(large)).generate(request)
    assert np.abs(given.latents - wanted.latents).max() < 1e-4
    assert given.trace.computed() == wanted.trace.computed()
    assert 2 < len(given.trace.computed()) < 8


def test_only_two_pairs_can_be_deepened(large: Path) -> None:
    deepen(large, 3)
    with pytest.raises(InputError, match="expected two pairs"):
        deepen(large, 4)


def test_the_model_is_prepared_from_a_pack(large: Path, tmp_path: Path) -> None:
    """Its weights are drawn where it is run."""
    strip(large)
    work = tmp_path / "model"
    assert large.name == LARGE
    told = prepare(Preparation(str(large.parent), str(work), ("tensorrt-rtx",), ("64x64:1f",), None, depth=3))
    assert told["config"]["depth"] == 3
    plans = told["plans"]["tensorrt-rtx"]
    assert plans["plans"] == 17  # stages and reuse, arithmetic and signals
    manifest = open_bundle(work).manifest
    ((name, made),) = manifest.plans.items()
    assert plans["targets"] == list(made.targets)
    stages = {(entry.stage, entry.variant): entry for entry in made.plans}
    assert len(stages) == len(made.plans) == len(manifest.graphs()) + 6
    assert stages["spatial.02", "full"].path == stages["spatial.00", "full"].path == f"engines/{name}/spatial.00.plan"
    assert stages["temporal.01", "full"].path == f"engines/{name}/temporal.01.plan"
    assert stages["temporal.02", "reuse"].path == f"engines/{name}/add.plan"
    hashes = {graph.name: manifest.files[graph.path].sha256 for graph in manifest.graphs()}
    assert all(hashes[entry.graph] == entry.graph_sha256 for entry in made.plans)


def test_the_benchmark_measures_in_turn(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the CPU, where its numbers mean nothing; backends that cannot be opened are skipped with the reason."""

    def opened(bundle: Any, _names: Any, _targets: Any, skipped: list[dict[str, str]]) -> dict[str, Any]:
        skipped.append({"what": "tensorrt", "why": "not here"})
        return {"onnxruntime": OrtBackend(bundle.folder), "torch": TorchBackend(bundle, "cpu")}

    monkeypatch.setattr(benchmark_module, "open_contenders", opened)
    deepen(large, 3)
    file = tmp_path / "told.json"
    benchmark(Run(str(large), "64x64:17f", ("tensorrt", "torch-eager"), {}, steps=9, rounds=1), file)
    told = json.loads(file.read_text())
    bundle = open_bundle(large)
    sizes = settle(bundle, sized_request(bundle, "64x64:17f", 9)).sizes
    assert {key: told["sizes"][key] for key in sizes} == sizes
    assert set(told["stages"]) >= {"text", "embed", "spatial", "temporal", "temporal with probe", "final", "add"}
    for stage in told["stages"].values():
        assert set(stage["backends"]) == {"onnxruntime", "torch"}
        assert all(0 < one["ms"]["low"] <= one["ms"]["median"] for one in stage["backends"].values())
    entry = next(stage for stage in bundle.manifest.stages if stage.graph.name == "spatial.00")
    assert entry.flops is not None
    flop = flops(entry.flops, told["sizes"])
    spatial = told["stages"]["spatial"]["backends"]["torch"]
    assert spatial["tflop_per_s"] == pytest.approx(flop / spatial["ms"]["median"] / 1e9)
    for one in told["calls"]["backends"].values():
        assert one["computed"] < one["calls"] == 9
        assert one["speed_up"] == pytest.approx(one["never_s"] / one["adacache_s"])
        assert one["efficiency"] == pytest.approx(one["speed_up"] * one["computed"] / 9)
    assert told["skipped"] == [{"what": "tensorrt", "why": "not here"}]
    assert "| torch |" in markdown({**RESULT, "benchmark": {"tiny": told}})
    assert capsys.readouterr().out == ""


def test_contenders_that_cannot_be_opened_are_skipped(pairs: Path) -> None:
    skipped: list[dict[str, str]] = []
    names = ("tensorrt-rtx", "onnxruntime-cuda", "torch-eager")
    assert open_contenders(open_bundle(pairs), names, {}, skipped) == {}
    assert [one["what"] for one in skipped] == [
        "tensorrt-rtx", "tensorrt-rtx, no graphs", "onnxruntime-cuda", "torch-eager",
    ]  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        with_reason(skipped, "a mistake of ours", lambda: 1 / 0)


def test_a_back_end_that_fails_is_out_and_the_others_go_on(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(large)
    request = replace(TINY.request(), steps=9)
    pipelines = {name: Pipeline(bundle, OrtBackend(large)) for name in ("good", "bad")}
    advance, count = _Generation.advance, [0]

    def failing(run: _Generation) -> bool:
        count[0] += 1
        if count[0] == 7:  # the third call of the second backend's first generation
            raise EngineError("out of memory")
        return advance(run)

    monkeypatch.setattr(_Generation, "advance", failing)
    skipped: list[dict[str, str]] = []
    sizes = {**settle(bundle, request).sizes, "text": TINY.text}
    told = measure_calls(pipelines, bundle.manifest, request, sizes, skipped)
    assert list(told["backends"]) == ["good"]
    assert told["backends"]["good"]["calls"] == 9
    assert skipped == [{"what": "calls on bad", "why": "out of memory"}]
