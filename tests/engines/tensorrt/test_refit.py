"""One build for all blocks of a kind; TensorRT is faked: a plan is the list of its weights, by name and content."""

import ctypes
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from adacache_engines.bundle.files import read_manifest
from adacache_engines.bundle.manifest import Manifest
from adacache_engines.bundle.shape_profiles import fixed_profile, shape_profile
from adacache_engines.errors import EngineError
from adacache_engines.tensorrt import build_tasks
from adacache_engines.tensorrt.build import BuildOptions
from adacache_engines.tensorrt.build_tasks import BuildTask, run_tasks
from adacache_engines.tensorrt.library import InstalledLibrary
from adacache_engines.tensorrt.refit import kind_of, refit

BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2}
BLOCKS = ("spatial.00", "spatial.01", "spatial.02", "temporal.00", "temporal.01", "temporal.02")


def weights_of(path: Path) -> dict[str, str]:
    """Digest of each weight that a graph takes from the file, read by onnx itself."""
    model = onnx.load(str(path), load_external_data=False)
    outside = {weight.name for weight in model.graph.initializer if weight.external_data}
    whole = onnx.load(str(path)).graph.initializer
    return {weight.name: hashlib.sha256(weight.raw_data).hexdigest() for weight in whole if weight.name in outside}


class Engine:
    def __init__(self, weights: dict[str, str]) -> None:
        self.weights = weights
        self.refittable = weights.pop("refittable", "yes") == "yes"

    def serialize(self) -> bytes:
        return json.dumps(self.weights).encode()


class Api:
    """The part of TensorRT that refits."""

    DataType = SimpleNamespace(FLOAT="FLOAT", HALF="HALF", BF16="BF16")

    def __init__(self, fixed: tuple[str, ...] = (), opens: bool = True, takes: bool = True) -> None:
        self.fixed, self.opens, self.takes = fixed, opens, takes

    def Runtime(self, _logger: object) -> Any:
        def deserialize(plan: bytes) -> Engine | None:
            return Engine(json.loads(bytes(plan))) if self.opens else None

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    def Weights(self, kind: str, address: int, count: int) -> bytes:
        return ctypes.string_at(address, count * BYTES[kind])

    def Refitter(self, engine: Engine, _logger: object) -> Any:
        assert engine.refittable
        given: dict[str, str] = {}

        def put(name: str, values: bytes) -> bool:
            given[name] = hashlib.sha256(values).hexdigest()
            return self.takes

        def commit() -> bool:
            engine.weights.update(given)
            return True

        return SimpleNamespace(
            get_all_weights=lambda: [name for name in engine.weights if name not in self.fixed],
            set_named_weights=put,
            get_missing_weights=lambda: [name for name in engine.weights if name not in given],
            refit_cuda_engine=commit,
        )


def library(**options: Any) -> InstalledLibrary:
    return InstalledLibrary("tensorrt", Api(**options), "11.0", None, [])


@pytest.fixture(params=["fp32", *(pytest.param(precision, marks=pytest.mark.slow) for precision in ("fp16", "bf16"))])
def folder(request: pytest.FixtureRequest, exported: Callable[..., Path]) -> Path:
    return exported(request.param)


def tasks(folder: Path, place: Path) -> list[BuildTask]:
    manifest: Manifest = read_manifest(folder)
    profiles = (shape_profile(manifest, fixed_profile(manifest)),)
    options = BuildOptions(refit=True)
    return [
        BuildTask(graph, folder / graph.path, place / f"{graph.name}.plan", profiles, options, False, "digest")
        for graph in manifest.graphs()
    ]


@pytest.mark.slow
def test_kinds_are_those_of_the_traces(bundle_folder: Path, exported: Callable[..., Path]) -> None:
    kinds, halves = (
        {path.stem: kind_of(path) for path in (folder / "onnx").glob("*.onnx")}
        for folder in (bundle_folder, exported("fp16"))
    )
    assert kinds["spatial.00"] == kinds["spatial.01"] == kinds["spatial.02"]
    assert kinds["temporal.00"] == kinds["temporal.01"] == kinds["temporal.02"]
    assert len(set(kinds.values())) == len(kinds) - 4
    assert kinds["spatial.00"] != halves["spatial.00"]
    # the middle block shows a residual, which here the others do not
    assert halves["temporal.00"] == halves["temporal.02"] != halves["temporal.01"]


def test_a_kind_is_built_once_and_every_plan_has_its_own_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    def build(_library: InstalledLibrary, path: Path, graph: Any, _profiles: Any, options: Any, *_: Any) -> memoryview:
        built.append(graph.name)
        kind = kinds[graph.name]
        assert options.refit == (list(kinds.values()).count(kind) > 1)
        return memoryview(json.dumps(weights_of(path)).encode())

    kinds = {task.graph.name: kind_of(task.onnx) for task in tasks(folder, tmp_path)}
    monkeypatch.setattr(build_tasks, "build_plan", build)
    monkeypatch.setattr(build_tasks, "_timing_cache", lambda _library, _folder: None)
    todo = tasks(folder, tmp_path)
    run_tasks(todo, library(), 1, lambda _units: None)
    assert len(built) == len(set(kinds.values())) < len(todo)
    for task in todo:
        content = json.loads(task.plan.read_bytes())
        first = next(other for other in todo if kinds[other.graph.name] == kinds[task.graph.name])
        assert list(content) == list(weights_of(first.onnx))
        assert list(content.values()) == list(weights_of(task.onnx).values())
    assert set(BLOCKS) <= kinds.keys()


def test_a_plan_that_lacks_a_bias_is_not_used(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT 11.3 computes without it and does not list it; such a kind is built block by block."""
    built: list[tuple[str, bool]] = []

    def build(_library: InstalledLibrary, path: Path, graph: Any, _profiles: Any, options: Any, *_: Any) -> memoryview:
        built.append((graph.name, options.refit))
        weights = weights_of(path)
        if options.refit:
            weights = {name: value for name, value in weights.items() if not name.endswith("attn.qkv.bias")}
        return memoryview(json.dumps({**weights, "refittable": "yes" if options.refit else "no"}).encode())

    monkeypatch.setattr(build_tasks, "build_plan", build)
    monkeypatch.setattr(build_tasks, "_timing_cache", lambda _library, _folder: None)
    todo = [task for task in tasks(bundle_folder, tmp_path) if task.graph.name in ("spatial.00", "spatial.02")]
    with caplog.at_level(logging.WARNING):
        run_tasks(todo, library(), 1, lambda _units: None)
    assert built == [("spatial.00", True), ("spatial.00", False), ("spatial.02", False)]
    assert "drops spatial_blocks.0.attn.qkv.bias when it builds spatial.00 to be refitted" in caplog.text
    for task in todo:
        assert json.loads(task.plan.read_bytes()) == {**weights_of(task.onnx), "refittable": "no"}
    todo[1].plan.unlink()
    run_tasks(todo, library(), 1, lambda _units: None)
    assert built[3:] == [("spatial.02", False)], "a build that goes on knows it, too"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opens": False}, r"cannot open the plan of .*spatial\.00"),
        ({"takes": False}, r"does not take spatial_blocks\.2\..* for spatial_blocks\.0\."),
        ({"fixed": ("spatial_blocks.0.attn.qkv.weight",)}, r"cannot change spatial_blocks\.0\.attn\.qkv\.weight"),
    ],
)
def test_a_weight_that_cannot_be_replaced(bundle_folder: Path, options: dict[str, Any], message: str) -> None:
    base, other = (bundle_folder / "onnx" / f"spatial.0{index}.onnx" for index in (0, 2))
    plan = json.dumps(weights_of(base)).encode()
    with pytest.raises(EngineError, match=message):
        refit(library(**options), plan, base, other)


def test_a_weight_that_the_graph_does_not_have(bundle_folder: Path) -> None:
    base, other = (bundle_folder / "onnx" / f"spatial.0{index}.onnx" for index in (0, 2))
    plan = json.dumps({**weights_of(base), "another": ""}).encode()
    with pytest.raises(EngineError, match=r"cannot put the weights of .*spatial\.02.* \(missing: another\)"):
        refit(library(), plan, base, other)
