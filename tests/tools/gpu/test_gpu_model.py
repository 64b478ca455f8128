"""The model that tools/gpu_check.py measures, and the measuring on a CPU."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from adacache_engines.bundle.files import open_bundle, read_manifest
from adacache_engines.contract.device import HostDevice
from adacache_engines.errors import BundleError, EngineError, InputError
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.convert import convert
from adacache_export.options import Options
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.reports.flops import flops
from adacache_runtime.settled import settle
from tests.helpers.gpu.gpu_check_result import RECORDS
from tools.gpu import agreement
from tools.gpu import benchmark as benchmark_module
from tools.gpu.benchmark import Run, benchmark
from tools.gpu.contenders import open_contenders
from tools.gpu.measure import _Generation, measure_calls
from tools.gpu.model import PROBE, prepare, run
from tools.gpu.phases import BACKENDS, LARGE
from tools.gpu.pytorch.eager import TorchBackend
from tools.gpu.pytorch.recorded import TorchOnBuffers
from tools.gpu.report import markdown
from tools.gpu.requests import sized_request
from tools.gpu.running.results import Report, read_part
from tools.gpu.skeleton import deepen, fill, strip
from tools.speed.calls import EVERY_THIRD
from tools.speed.checkpoint import config_of, write_checkpoint
from tools.speed.size import Size

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
    told = prepare(str(large.parent), str(work), "tensorrt-rtx", ("64x64:1f",), depth=3)
    assert told["config"]["depth"] == 3
    plans = told["plans"]["tensorrt-rtx"]
    assert plans["plans"] == 18  # stages and reuse, arithmetic and signals
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


def test_a_preparation_that_was_ended_is_made_again(pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(pairs, tmp_path / "bundles" / LARGE)
    work = tmp_path / "model"
    left = tmp_path / ".model.part"
    left.mkdir()
    (left / "manifest.json").write_text("half")
    report = Report(tmp_path / "model.part.json")
    run({"source": str(tmp_path / "bundles"), "work": str(work), "depth": 3}, report)
    assert open_bundle(work).manifest.config["depth"] == report.told["model"]["config"]["depth"] == 3
    assert report.told["model"]["plans"] == {}
    assert not left.exists()


def test_the_benchmark_measures_in_turn(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the CPU, where its numbers mean nothing; backends that cannot be opened are skipped with the reason."""

    def opened(bundle: Any, _names: Any, report: Report) -> dict[str, Any]:
        report.skipped("tensorrt", "not here")
        return {"onnxruntime": OrtBackend(bundle.folder), "torch": TorchBackend(bundle, "cpu")}

    monkeypatch.setattr(benchmark_module, "open_contenders", opened)
    deepen(large, 3)
    report = Report(tmp_path / "it.part.json")
    benchmark(Run(str(large), "64x64:17f", ("tensorrt", "torch-eager"), steps=13, rounds=1), report)
    report.keep(complete=True)
    kept = read_part(tmp_path, "it")
    told = kept["told"]
    bundle = open_bundle(large)
    sizes = settle(bundle, sized_request(bundle, "64x64:17f", 13)).sizes
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
        assert one["computed"] < one["calls"] == 13
        assert one["cached_wall_ms"]["median"] > 0
        assert one["full_host_ms"]["low"] <= one["full_wall_ms"]["high"]
        assert one["speed_up"] == pytest.approx(one["never_s"] / one["adacache_s"])
        assert one["efficiency"] == pytest.approx(one["speed_up"] * one["computed"] / 13)
    assert kept["skips"] == [{"what": "tensorrt", "why": "not here"}]
    shown = markdown({"tiny": {**RECORDS["torch-480p-2s"], **kept}})
    assert "| torch |" in shown
    assert "cannot be shown" not in shown
    assert capsys.readouterr().out == ""


def test_contenders_that_cannot_be_opened_are_left_out(pairs: Path, tmp_path: Path) -> None:
    report = Report(tmp_path / "it.part.json")
    names = (
        "tensorrt-rtx",
        "tensorrt-rtx without CUDA graphs",
        "onnxruntime-cuda",
        "torch-recorded",
        "torch-eager",
        "jax",
    )
    assert open_contenders(open_bundle(pairs), names, report) == {}
    report.keep()
    kept = read_part(tmp_path, "it")
    assert sorted(one["what"] for one in (*kept["skips"], *kept["failures"])) == sorted(names)
    why = f"InputError: backend 'jax' is unknown; known: {', '.join(BACKENDS)}"
    assert {"what": "jax", "why": why} in kept["skips"]


@pytest.mark.parametrize("error", [EngineError("out of memory"), AssertionError("of torch's compiler")])
def test_a_backend_that_fails_is_out_and_the_others_go_on(
    large: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    bundle = open_bundle(large)
    request = replace(TINY.request(), steps=9)
    pipelines = {name: Pipeline(bundle, OrtBackend(large)) for name in ("good", "bad")}
    advance, count = _Generation.advance, [0]

    def failing(run: _Generation) -> bool:
        count[0] += 1
        if count[0] == 7:  # the third call of the second backend's first generation
            raise error
        return advance(run)

    monkeypatch.setattr(_Generation, "advance", failing)
    report = Report(tmp_path / "it.part.json")
    sizes = {**settle(bundle, request).sizes, "text": TINY.text}
    measure_calls(pipelines, bundle.manifest, request, sizes, report)
    kept = read_part(tmp_path, "it")
    assert list(kept["told"]["calls"]["backends"]) == ["good"]
    assert kept["told"]["calls"]["backends"]["good"]["calls"] == 9
    assert "speed_up" in kept["told"]["calls"]["backends"]["good"]
    assert kept["failures"] == [{"what": "calls on bad", "why": f"{type(error).__name__}: {error}"}]


def test_calls_are_kept_while_they_are_measured(large: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = open_bundle(large)
    request = replace(TINY.request(), steps=9)
    advance, count = _Generation.advance, [0]

    def interrupted(run: _Generation) -> bool:
        count[0] += 1
        if count[0] == 9:
            raise KeyboardInterrupt
        return advance(run)

    monkeypatch.setattr(_Generation, "advance", interrupted)
    sizes = {**settle(bundle, request).sizes, "text": TINY.text}
    pipelines, report = {"it": Pipeline(bundle, OrtBackend(large))}, Report(tmp_path / "it.part.json")
    with pytest.raises(KeyboardInterrupt):
        measure_calls(pipelines, bundle.manifest, request, sizes, report)
    kept = read_part(tmp_path, "it")["told"]["calls"]["backends"]["it"]
    assert kept["full_ms"]["median"] > 0
    assert kept["calls"] == 4
    assert "speed_up" not in kept


# torch on the project's own buffers


def test_torch_on_the_projects_buffers_gives_what_onnxruntime_gives(large: Path, tmp_path: Path) -> None:
    bundle = open_bundle(large)
    report = Report(tmp_path / "it.part.json")
    tested, reference = TorchOnBuffers(bundle, HostDevice()), OrtBackend(large)
    graphs = bundle.manifest.loop_graphs()
    agreement.compare_graphs(bundle, tested, reference, graphs, 1e-4, report)
    agreement.compare_generations(bundle, tested, reference, 1e-4, report)
    kept = read_part(tmp_path, "it")
    assert kept["failures"] == []
    assert set(kept["told"]["graphs"]) == {graph.name for graph in graphs}
    assert set(kept["told"]["generations"]) == {"never", "adacache"}
    shown = markdown({"it": {**RECORDS["torch-480p-2s"], **kept}})
    assert shown.count("| yes |") == len(graphs) + 2


def test_a_graph_that_disagrees_or_fails_takes_nothing_from_the_others(large: Path, tmp_path: Path) -> None:
    bundle = open_bundle(large)
    report = Report(tmp_path / "it.part.json")
    tested = TorchOnBuffers(bundle, HostDevice())
    tested._modules["final"].linear.weight.data[0] += 1
    del tested._modules["embed"]
    graphs = bundle.manifest.loop_graphs()
    agreement.compare_graphs(bundle, tested, OrtBackend(large), graphs, 1e-4, report)
    kept = read_part(tmp_path, "it")
    assert [one["what"] for one in kept["failures"]] == ["embed", "final"]
    assert kept["failures"][0]["why"] == "KeyError: 'embed'"
    assert "where 1.0e-04 are allowed" in kept["failures"][1]["why"]
    assert len(kept["told"]["graphs"]) == len(graphs) - 1
