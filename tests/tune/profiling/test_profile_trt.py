"""Profiling compiled plans; the library, Polygraphy's runner and the GPU's memory are faked."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polygraphy.config
import pytest
from polygraphy.datatype import DataType

from adacache_engines.bundle.files import Bundle, dump_manifest, sha256_file
from adacache_engines.bundle.manifest import Manifest, PlanEntry, PlanSet
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.contract.fake import FakeBackend
from adacache_engines.errors import BundleError, EngineError, OutOfRangeError
from adacache_engines.tensorrt.backend import TensorRT
from adacache_engines.tensorrt.library import InstalledLibrary
from adacache_tune.commands.profile import main
from adacache_tune.profiling import trt_target
from adacache_tune.profiling.backends import use_library
from adacache_tune.profiling.engine_latency import measure_engine
from adacache_tune.profiling.subjects import Subject, subjects
from adacache_tune.profiling.trt_target import TrtTarget
from tests.helpers.model import fake_model

Capture = pytest.CaptureFixture[str]
ORIGINAL = fake_model.functions()
PROFILES = {
    "small": {"height": (1, 1, 1), "width": (5, 5, 5)},
    "usual": {"height": (2, 2, 8), "width": (4, 5, 8), "frames": (1, 4, 8)},
}
SIZES = {
    "samples": 1,
    "batch": 2,
    "frames": 4,
    "height": 2,
    "width": 5,
    "patch_frames": 4,
    "tokens": 10,
    "text": 3,
    "calls": 1,
    "pairs": 3,
}


@dataclass
class FakeMemory:
    """Stands in for ``polygraphy.cuda``: arrays by address."""

    blocks: dict[int, np.ndarray] = field(default_factory=dict)

    def put(self, data: np.ndarray) -> int:
        address = 4096 * (len(self.blocks) + 1)
        while address in self.blocks:
            address += 4096
        self.blocks[address] = np.array(data)
        return address

    def module(self) -> Any:
        memory = self

        class DeviceView:
            def __init__(self, ptr: int, shape: tuple[int, ...], dtype: Any) -> None:
                self.ptr, self.shape, self.kind = ptr, shape, dtype

            def copy_to(self, host: np.ndarray) -> None:
                host[...] = memory.blocks[self.ptr][: host.size]

        class DeviceArray:
            @staticmethod
            def raw(shape: tuple[int, ...]) -> "DeviceArray":
                made = DeviceArray()
                made.ptr = memory.put(np.zeros(shape, np.uint8))
                return made

            ptr = 0

            def copy_from(self, host: np.ndarray) -> "DeviceArray":
                assert host.dtype == np.uint8
                memory.blocks[self.ptr] = host.copy()
                return self

            def free(self) -> None:
                del memory.blocks[self.ptr]

        return SimpleNamespace(DeviceArray=DeviceArray, DeviceView=DeviceView)


class FakeTrt:
    """Stands in for ``polygraphy.backend.trt``: a plan's bytes are the name of the graph that it runs."""

    def __init__(self, manifest: Manifest, memory: FakeMemory, layer_ms: float = 0.25) -> None:
        self.opened: list[str] = []
        self.profiles: list[int] = []
        self.resident: list[float | None] = []  # percent of weights that stay on the GPU
        self.kinds: dict[str, Any] = {}
        graphs = {graph.name: graph for graph in manifest.graphs()}
        functions, fake = fake_model.functions(), self

        class TrtRunner:
            def __init__(self, load: Any, optimization_profile: int, weight_streaming_percent: float | None) -> None:
                self.load = load
                fake.resident.append(weight_streaming_percent)
                fake.profiles.append(optimization_profile)

            def activate(self) -> None:
                name = self.load().decode()
                fake.opened.append(name)
                self.graph, self.context = graphs[name], SimpleNamespace(profiler=None)

            def deactivate(self) -> None:
                del self.graph

            def get_input_metadata(self, use_numpy_dtypes: bool) -> Any:
                return {spec.name: None for spec in self.graph.inputs}

            def infer(self, feed: Mapping[str, Any], check_inputs: bool, copy_outputs_to_host: bool) -> dict[str, Any]:
                assert not copy_outputs_to_host
                specs = {spec.name: spec for spec in (*self.graph.inputs, *self.graph.outputs)}
                arrays = {}
                for name, view in feed.items():
                    dtype = NUMPY_DTYPES[specs[name].dtype]
                    arrays[name] = memory.blocks[view.ptr].view(dtype).reshape(view.shape)
                    fake.kinds[name] = view.kind
                if self.context.profiler:
                    self.context.profiler.report_layer_time("attention", layer_ms)
                    self.context.profiler.report_layer_time("mlp", 2 * layer_ms)
                results = {}
                for name, value in functions[self.graph.name](arrays).items():
                    data = np.ascontiguousarray(value.astype(NUMPY_DTYPES[specs[name].dtype]))
                    ptr = memory.put(data.reshape(-1).view(np.uint8))
                    results[name] = SimpleNamespace(ptr=ptr, shape=data.shape)
                return results

            def last_inference_time(self) -> float:
                return 0.001 * len(fake.opened)

        self.TrtRunner = TrtRunner
        self.EngineFromBytes = lambda read: read


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The fake model with a set of plans, built for two sizes."""
    made = fake_model.write_bundle(tmp_path / "bundle")
    return with_plans(made)


def with_plans(made: Bundle) -> Bundle:
    manifest = made.manifest
    folder = made.folder / "engines" / "rtx"
    folder.mkdir(parents=True)
    wanted = [(stage.graph.name, "full", stage.graph.name) for stage in manifest.stages]
    wanted += [(stage.graph.name, "reuse", "add") for stage in manifest.stages if stage.block]
    wanted += [(name, "full", name) for name in manifest.arithmetic]
    wanted += [(graph.name, "full", graph.name) for graph in manifest.signal_graphs()]
    entries = []
    for stage, variant, graph in wanted:
        path = folder / f"{graph}.plan"
        path.write_bytes(graph.encode())
        entries.append(
            PlanEntry(
                stage=stage,
                variant=variant,
                graph=graph,
                path=path.relative_to(made.folder).as_posix(),
                nbytes=path.stat().st_size,
                sha256=sha256_file(path),
                graph_sha256=manifest.files[f"onnx/{graph}.onnx"].sha256,
                build_s=1.0,
            )
        )
    plans = PlanSet(
        library="tensorrt-rtx",
        version="9.9",
        targets=("8.9",),
        precision="fp32",
        profiles=PROFILES,
        plans=tuple(entries),
    )
    whole = Manifest.model_validate({**manifest.model_dump(), "plans": {"rtx": plans}})
    (made.folder / "manifest.json").write_text(dump_manifest(whole), encoding="utf-8")
    return Bundle(made.folder, whole)


class FakeProfiler:
    """``tensorrt.IProfiler``, which wants its own ``__init__`` called."""


@pytest.fixture
def trt(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeTrt, FakeMemory]]:
    memory = FakeMemory()
    fake = FakeTrt(bundle.manifest, memory)
    library = InstalledLibrary("tensorrt-rtx", SimpleNamespace(IProfiler=FakeProfiler), "9.9", None, [])
    monkeypatch.setattr(polygraphy.config, "USE_TENSORRT_RTX", True)
    monkeypatch.setattr(trt_target, "open_library", lambda _name: library)
    monkeypatch.setattr(trt_target, "gpu_target", lambda: "8.9")
    monkeypatch.setattr(trt_target, "TrtBackend", lambda *_arguments, **_options: FakeBackend(fake_model.functions()))
    monkeypatch.setattr("adacache_tune.machine.gpu", lambda: "a fake GPU")
    monkeypatch.setitem(sys.modules, "polygraphy.backend.trt", fake)
    monkeypatch.setitem(sys.modules, "polygraphy.cuda", memory.module())
    yield fake, memory


def subject(bundle: Bundle, name: str) -> Subject:
    (found,) = subjects(bundle.manifest, [name], encoder=False)
    return found


def test_plans_are_measured(bundle: Bundle, trt: tuple[FakeTrt, FakeMemory]) -> None:
    fake, _ = trt
    target = TrtTarget(bundle, TensorRT("tensorrt-rtx"), SIZES)
    latency = measure_engine(target, bundle.manifest, subject(bundle, "spatial.01"), SIZES, 3, 1, with_layers=True)
    assert fake.opened == ["spatial.01", "spatial.01"]  # once more for the layers
    assert set(fake.profiles) == {1}  # the first is too narrow
    assert (latency.runner, latency.median_ms, latency.p95_ms) == ("TrtRunner", 1.0, 1.0)
    assert [(layer.name, layer.median_ms) for layer in latency.layers] == [("mlp", 0.5), ("attention", 0.25)]
    assert fake.kinds["hidden"] == DataType.FLOAT32
    assert fake.kinds["text_mask"] == DataType.BOOL


def test_the_reuse_variant_is_the_plan_that_blocks_share(bundle: Bundle, trt: tuple[FakeTrt, FakeMemory]) -> None:
    target = TrtTarget(bundle, TensorRT("tensorrt-rtx"), SIZES)
    assert measure_engine(target, bundle.manifest, subject(bundle, "add"), SIZES, 1, 0, False).kind == "reuse"
    assert trt[0].opened == ["add"]
    assert target.plan_nbytes() == sum(len(name) for name in {graph.name for graph in bundle.manifest.graphs()})


def test_a_weight_budget_reaches_the_engines(bundle: Bundle, trt: tuple[FakeTrt, FakeMemory]) -> None:
    plans = bundle.manifest.plans["rtx"]
    budget = sum({entry.path: entry.nbytes for entry in plans.plans}.values()) // 2
    chosen = TensorRT("tensorrt-rtx", weight_budget=budget)
    with pytest.raises(EngineError, match="keep all weights on the GPU"):
        TrtTarget(bundle, chosen, SIZES)
    streaming = plans.model_copy(update={"options": {"weight_streaming": True}})
    manifest = bundle.manifest.model_copy(update={"plans": {"rtx": streaming}})
    target = TrtTarget(Bundle(bundle.folder, manifest), chosen, SIZES)
    measure_engine(target, manifest, subject(bundle, "add"), SIZES, 1, 0, False)
    assert trt[0].resident == [pytest.approx(50, abs=1)]  # percent


def test_results_come_back_and_bfloat16_is_float32_outside(
    trt: tuple[FakeTrt, FakeMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, memory = trt
    graph = fake_model.graph(
        "add",
        (fake_model.spec("hidden", "batch", dtype="bfloat16"), fake_model.spec("residual", "batch", dtype="bfloat16")),
        (fake_model.spec("hidden_out", "batch", dtype="bfloat16"),),
    )
    halves = SimpleNamespace(graphs=lambda: [graph])
    monkeypatch.setitem(sys.modules, "polygraphy.backend.trt", FakeTrt(halves, memory))
    fake = sys.modules["polygraphy.backend.trt"]
    with trt_target.plan_runner(graph, lambda: b"add", 0) as runner:
        given = {"hidden": np.array([1.5, -2, 3], np.float32), "residual": np.array([0.25, 1, 1], np.float32)}
        results = runner.infer(given)
    assert fake.kinds == {"hidden": DataType.BFLOAT16, "residual": DataType.BFLOAT16}
    assert results["hidden_out"].dtype == np.float32
    assert results["hidden_out"].tolist() == [1.75, -1, 4]


def test_inputs_leave_the_gpu_after_each_call(bundle: Bundle, trt: tuple[FakeTrt, FakeMemory]) -> None:
    _, memory = trt
    target = TrtTarget(bundle, TensorRT("tensorrt-rtx"), SIZES)
    measure_engine(target, bundle.manifest, subject(bundle, "subtract"), SIZES, 5, 0, False)
    assert len(memory.blocks) == 6  # the outputs, which are the runner's to free


def test_nothing_of_a_changed_plan_is_opened(bundle: Bundle, trt: tuple[FakeTrt, FakeMemory]) -> None:
    (bundle.folder / "engines" / "rtx" / "final.plan").write_bytes(b"embed")
    with pytest.raises(BundleError, match=r"engines/rtx/final\.plan was changed"):
        TrtTarget(bundle, TensorRT("tensorrt-rtx"), SIZES)
    assert trt[0].opened == []


@pytest.mark.usefixtures("trt")
def test_plans_for_other_sizes(bundle: Bundle) -> None:
    with pytest.raises(
        OutOfRangeError, match=r"small: height 3, built for 1 to 1, width 9, .* 5; profile usual: width 9, built for"
    ):
        TrtTarget(bundle, TensorRT("tensorrt-rtx"), {**SIZES, "height": 3, "width": 9})


@pytest.mark.usefixtures("trt")
def test_no_plans(tmp_path: Path, capsys: Capture) -> None:
    plain = fake_model.write_bundle(tmp_path / "plain")
    assert main([str(plain.folder), "--backend", "tensorrt-rtx"]) == 1
    error = capsys.readouterr().err
    assert "has no plans that tensorrt-rtx 9.9 can run here (it has none at all)" in error
    assert f"adacache-export {plain.folder} --backend tensorrt-rtx" in error


@pytest.mark.usefixtures("trt")
def test_the_other_library_is_loaded_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygraphy.config, "USE_TENSORRT_RTX", False)
    with pytest.raises(EngineError, match="already uses the other TensorRT library"):
        use_library([TensorRT("tensorrt-rtx")])


@pytest.mark.usefixtures("trt")
def test_the_whole_command(bundle: Bundle, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "p.json"
    command = [str(bundle.folder), "--backend", "tensorrt-rtx", "--iterations", "2", "--layers", "--json", str(out)]
    assert main([*command, "--html", str(tmp_path / "p.html")]) == 0
    made = json.loads(out.read_text())
    assert {engine["runner"] for engine in made["engines"]} == {"TrtRunner"}
    assert [engine["name"] for engine in made["engines"]] == [graph.name for graph in bundle.manifest.graphs()]
    assert made["backend"] == "tensorrt-rtx 9.9, compute capability 8.9"
    assert made["machine"]["gpu"] == "a fake GPU"
    assert made["memory"]["plans"] > 0
    assert made["generation"]["calls"] == bundle.manifest.sampler.steps
    assert made["memory"]["hidden_states"] > 0
    assert "a fake GPU" in (tmp_path / "p.html").read_text()
    assert "generation" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--provider", "cuda"], ["--threads", "2"]])
@pytest.mark.usefixtures("trt")
def test_options_of_the_other_backend_are_refused(options: list[str], bundle: Bundle, capsys: Capture) -> None:
    assert main([str(bundle.folder), "--backend", "tensorrt-rtx", *options]) == 1
    assert f"backend tensorrt-rtx has no option '{options[0][2:]}'" in capsys.readouterr().err


def test_a_comparison_of_plans_with_themselves_and_a_wrong_one(
    bundle: Bundle, trt: tuple[FakeTrt, FakeMemory], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Against ONNX Runtime, which is faked by a second target here: the fake model has no graphs to load."""
    target = TrtTarget(bundle, TensorRT("tensorrt-rtx"), SIZES)
    monkeypatch.setattr("adacache_tune.commands.profile.open_target", lambda *_: target)
    command = [str(bundle.folder), "--compare", "onnxruntime,tensorrt-rtx"]
    assert main(command) == 0
    assert "DIFFERS" not in capsys.readouterr().out
    runs = iter(range(1000))
    plain = fake_model.functions()["add"]

    def drifting(given: Any) -> dict[str, Any]:
        return {"hidden_out": plain(given)["hidden_out"] + np.float32(0.01 * next(runs))}

    monkeypatch.setattr(fake_model, "functions", lambda: {**ORIGINAL, "add": drifting})
    fake = FakeTrt(bundle.manifest, trt[1])
    monkeypatch.setitem(sys.modules, "polygraphy.backend.trt", fake)
    assert main(command) == 1
    assert "onnxruntime differs from tensorrt-rtx by more than rounding in add" in capsys.readouterr().err
