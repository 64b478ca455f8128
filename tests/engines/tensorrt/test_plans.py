"""Plans of TensorRT-RTX, which builds them without a GPU: what is built, resumed, refused."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
import psutil
import pytest

from adacache_engines.bundle.files import Bundle, open_bundle, read_manifest, replace_manifest, sha256_file
from adacache_engines.bundle.manifest import Manifest, PlanSet
from adacache_engines.bundle.shape_profiles import ShapeProfile, fixed_profile, shape_profile
from adacache_engines.errors import BundleError, EngineError, InputError
from adacache_engines.passes.graph_pass import rewritten
from adacache_engines.tensorrt import build as trt_build
from adacache_engines.tensorrt import build_tasks, plan_builder
from adacache_engines.tensorrt.build import BuildOptions, build_plan, check_options
from adacache_engines.tensorrt.library import InstalledLibrary, open_library
from adacache_engines.tensorrt.plan_builder import build_plans
from adacache_engines.tensorrt.plans import check_plans, choose, find
from adacache_export.commands.export import main as export
from adacache_export.convert import convert
from adacache_export.options import Options
from tests.helpers.originals.reference import DEMO
from tests.helpers.waiting import HANG_SECONDS, until
from tools.speed.checkpoint import config_of, write_checkpoint
from tools.speed.size import Size

pytestmark = pytest.mark.slow  # an export, and plans that TensorRT-RTX builds
ARITHMETIC = {
    "add",
    "subtract",
    "hidden_change",
    "latents_change",
    "hidden_motion",
    "latents_new_magnitude",
    "guide",
    "combine",
}
Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def rtx() -> InstalledLibrary:
    return open_library("tensorrt-rtx")


def profiles(folder: Path, *names: str) -> dict[str, ShapeProfile]:
    manifest = read_manifest(folder)
    return {name: shape_profile(manifest, name) for name in names or [fixed_profile(manifest)]}


@pytest.fixture(scope="session")
def compiled(once: Once, exported: Callable[..., Path], rtx: InstalledLibrary) -> Path:
    """The reference model in fp16 with plans. Tests must not change it."""

    def build(folder: Path) -> None:
        part = folder.with_suffix(".part")
        shutil.copytree(exported("fp16"), part)
        build_plans(part, rtx, profiles(part), BuildOptions(), workers=1)
        part.rename(folder)

    return once("bundle-A-fp16-plans", build)


@pytest.fixture
def bundle(compiled: Path, tmp_path: Path) -> Path:
    """One to change."""
    return Path(shutil.copytree(compiled, tmp_path / "bundle"))


@pytest.fixture
def bare(exported: Callable[..., Path], tmp_path: Path) -> Path:
    """One without plans."""
    return Path(shutil.copytree(exported("fp16"), tmp_path / "bare"))


def only(folder: Path) -> PlanSet:
    (plans,) = read_manifest(folder).plans.values()
    return plans


# what is built


def assert_complete(folder: Path, rtx: InstalledLibrary) -> None:
    bundle = open_bundle(folder)
    manifest, plans = bundle.manifest, only(folder)
    blocks = {stage.graph.name for stage in manifest.stages if stage.block}
    names = {graph.name for graph in manifest.graphs()}
    assert names >= blocks | ARITHMETIC | {"text", "embed", "final"}
    found = {(entry.stage, entry.variant): entry for entry in plans.plans}
    assert set(found) == {(name, "full") for name in names} | {(block, "reuse") for block in blocks}
    assert len(found) == len(plans.plans)
    assert (plans.library, plans.version, plans.precision) == ("tensorrt-rtx", rtx.version, manifest.precision)
    assert plans.targets == ("8.0", "8.6", "8.9", "12.0", "12.1")
    for (_, variant), entry in found.items():
        if variant == "reuse":
            assert (entry.graph, entry.path) == ("add", found["add", "full"].path)
        path = folder / entry.path
        assert (path.stat().st_size, sha256_file(path)) == (entry.nbytes, entry.sha256)
        graph = next(graph for graph in manifest.graphs() if graph.name == entry.graph)
        assert entry.graph_sha256 == manifest.files[graph.path].sha256
        assert entry.build_s > 0
    stored = {path for path in (folder / "engines").rglob("*") if path.is_file()}
    assert stored == {folder / entry.path for entry in plans.plans}, "only plans, each content once"
    assert choose(bundle, "tensorrt-rtx", rtx.version, "8.9")[1] == plans
    check_plans(bundle, plans)


def test_what_a_set_lacks_is_built(bundle: Path, rtx: InstalledLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a text encoder was added: the plans that are there stay."""
    manifest, before = read_manifest(bundle), only(bundle)
    lacking = {"final", "guide"}
    kept = tuple(entry for entry in before.plans if entry.graph not in lacking)
    (name,) = manifest.plans
    replace_manifest(bundle, manifest.model_copy(update={"plans": {name: before.model_copy(update={"plans": kept})}}))
    built: list[str] = []

    def build(library: InstalledLibrary, onnx: Path, *options: object) -> memoryview:
        built.append(onnx.stem)
        return build_plan(library, onnx, *options)  # type: ignore[arg-type]

    monkeypatch.setattr(build_tasks, "build_plan", build)
    after = build_plans(bundle, rtx, profiles(bundle), BuildOptions(), workers=1)
    assert set(built) == lacking
    assert_complete(bundle, rtx)
    assert after.plans == only(bundle).plans
    assert {entry for entry in after.plans if entry.graph not in lacking} == {*kept}


def test_the_demo_model(tmp_path: Path, rtx: InstalledLibrary, capsys: pytest.CaptureFixture[str]) -> None:
    """In bf16; the tests of the README do it in fp16."""
    folder = tmp_path / "demo.adacache"
    options = ["--precision", "bf16", "--text-encoder", str(DEMO / "text_encoder")]
    plans = ["--backend", "tensorrt-rtx", "--profile", "16x16..32x32:1f..8f:1..2", "--profile", "32x32:16f"]
    assert export([str(DEMO), "-o", str(folder), *options, *plans]) == 0
    assert {"encoder.embed", "encoder.00", "encoder.final"} <= {entry.stage for entry in only(folder).plans}
    assert list(only(folder).profiles) == plans[3::2]
    assert_complete(folder, rtx)
    assert "tensorrt-rtx" in capsys.readouterr().out


def test_blocks_of_full_width(tmp_path: Path, rtx: InstalledLibrary) -> None:
    write_checkpoint(tmp_path / "wide.safetensors", config_of(Size(depth=1, caption_width=256)))
    folder = tmp_path / "wide.adacache"
    convert(tmp_path / "wide.safetensors", folder, Options(precision="fp16"))
    build_plans(folder, rtx, profiles(folder, "480p:2s", "720p:2s"), BuildOptions())
    assert_complete(folder, rtx)
    weights = read_manifest(folder).files["onnx/weights.safetensors"].nbytes
    files = {entry.path: entry.nbytes for entry in only(folder).plans}
    assert sum(files.values()) < 1.3 * weights, "two profiles share their weights"


def test_fp32_is_spelled_out(exported: Callable[..., Path], tmp_path: Path, rtx: InstalledLibrary) -> None:
    folder = Path(shutil.copytree(exported("fp32"), tmp_path / "bundle"))
    build_plans(folder, rtx, profiles(folder), BuildOptions(), workers=1)
    assert_complete(folder, rtx)


def test_processes_build_what_one_builds(bare: Path, compiled: Path, rtx: InstalledLibrary) -> None:
    steps: list[int] = []
    made = build_plans(bare, rtx, profiles(bare), BuildOptions(), lambda _name, _total: steps.append, workers=2)
    assert_complete(bare, rtx)

    def sources(plans: PlanSet) -> dict[tuple[str, str], str]:  # the library may choose other kernels each time
        return {(entry.stage, entry.variant): entry.graph_sha256 for entry in plans.plans}

    assert sources(made) == sources(only(compiled))
    assert sum(steps[-len(read_manifest(bare).graphs()) - 1 :]) == len(read_manifest(bare).graphs())


def test_targets_and_other_options(bare: Path, rtx: InstalledLibrary) -> None:
    options = BuildOptions(targets=("8.9",), workspace_mb=2048, weight_streaming=True)
    made = build_plans(bare, rtx, profiles(bare), options, workers=1)
    assert made.targets == ("8.9",)
    assert made.options == {"workspace_mb": 2048, "weight_streaming": True}
    assert list(read_manifest(bare).plans) == [f"tensorrt-rtx-{rtx.version}-sm89"]


# one plan


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


def test_the_gpu_that_is_there(bare: Path, rtx: InstalledLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest names its capability, so that other machines refuse the plans."""
    options = BuildOptions(targets=("current",))
    monkeypatch.setattr(plan_builder, "gpu_target", lambda: None)
    with pytest.raises(InputError, match="target current is for a GPU that is there, and this machine has none"):
        build_plans(bare, rtx, profiles(bare), options)
    asked: list[tuple[str, ...]] = []

    def stopped(tasks: Sequence[build_tasks.BuildTask], *_: object) -> list[build_tasks.Built]:
        asked.extend(task.options.targets for task in tasks)
        raise KeyboardInterrupt

    monkeypatch.setattr(plan_builder, "gpu_target", lambda: "9.0")
    monkeypatch.setattr(plan_builder, "run_tasks", stopped)
    with pytest.raises(KeyboardInterrupt):
        build_plans(bare, rtx, profiles(bare), options)
    assert set(asked) == {("current",)}
    assert plan_builder._targets(rtx, options) == ("9.0",)


# builds that do not come to an end


def partial(folder: Path) -> Path:
    (found,) = (folder / "engines").glob(".*.partial")
    return found


def finished(folder: Path) -> dict[str, int]:
    """Plans with a record -> when they were written."""
    records = (folder / "engines").glob(".*.partial/[!.]*.json")
    return {path.stem: path.with_suffix(".plan").stat().st_mtime_ns for path in records}


def started(folder: Path, count: int) -> subprocess.Popen[bytes]:
    """The command in a process of its own, when it has finished ``count`` plans."""
    arguments = [str(folder), "--backend", "tensorrt-rtx", "--jobs", "1"]
    code = "import sys; from adacache_export.commands.export import main; sys.exit(main())"
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE)
    until(lambda: len(finished(folder)) >= count or child.poll() is not None)
    assert child.poll() is None, child.communicate()
    return child


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_stopped_build_goes_on(bare: Path, rtx: InstalledLibrary, stop: signal.Signals, status: int) -> None:
    before = (bare / "manifest.json").read_bytes()
    child = started(bare, 3)
    child.send_signal(stop)
    child.communicate(timeout=HANG_SECONDS)
    assert child.returncode == status
    assert (bare / "manifest.json").read_bytes() == before
    open_bundle(bare)  # what is there is a bundle without plans
    kept = finished(bare)
    assert 3 <= len(kept) < len(read_manifest(bare).graphs())
    build_plans(bare, rtx, profiles(bare), BuildOptions(), workers=1)
    assert_complete(bare, rtx)
    place = (bare / only(bare).plans[0].path).parent
    assert {name: (place / f"{name}.plan").stat().st_mtime_ns for name in kept} == kept


class Stop(Exception):  # noqa: N818
    pass


def stop_after(count: int) -> Callable[[str, int], Callable[[int], None]]:
    done: list[int] = []

    def step(units: int) -> None:
        done.append(units)
        if sum(done) >= count:
            raise Stop

    return lambda name, _total: step if name == "building plans" else lambda _units: None


@pytest.mark.parametrize("damage", ["plan", "record", "settings"])
def test_only_what_is_whole_and_meant_is_kept(bare: Path, rtx: InstalledLibrary, damage: str) -> None:
    with pytest.raises(Stop):
        build_plans(bare, rtx, profiles(bare), BuildOptions(), stop_after(4), workers=1)
    kept = finished(bare)
    assert len(kept) == 4
    name = next(iter(kept))
    options = BuildOptions()
    if damage == "plan":
        file = partial(bare) / f"{name}.plan"
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "record":
        (partial(bare) / f"{name}.json").write_text("{")
    else:
        options = BuildOptions(workspace_mb=4096)
    build_plans(bare, rtx, profiles(bare), options, workers=1)
    assert_complete(bare, rtx)
    place = (bare / only(bare).plans[0].path).parent
    again = {one for one, at in kept.items() if (place / f"{one}.plan").stat().st_mtime_ns != at}
    assert again == (set(kept) if damage == "settings" else {name})


def test_a_process_that_is_killed(bare: Path, rtx: InstalledLibrary) -> None:
    def kill(units: int) -> None:
        if units == 1:
            for child in psutil.Process().children():
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()

    with pytest.raises(EngineError, match=r"was killed.*--jobs 1: finished plans are kept"):
        build_plans(bare, rtx, profiles(bare), BuildOptions(), lambda _name, _total: kill, workers=2)
    assert finished(bare)
    assert not read_manifest(bare).plans
    build_plans(bare, rtx, profiles(bare), BuildOptions(), workers=1)
    assert_complete(bare, rtx)


def test_a_full_disk(bare: Path, rtx: InstalledLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = build_tasks._write, []

    def full(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(build_tasks, "_write", full)
    with pytest.raises(EngineError, match=r"the disk is full.*make room"):
        build_plans(bare, rtx, profiles(bare), BuildOptions(), workers=1)
    monkeypatch.undo()
    assert len(finished(bare)) == 2
    build_plans(bare, rtx, profiles(bare), BuildOptions(), workers=1)
    assert_complete(bare, rtx)


# plans that are there already


def test_the_same_plans_are_not_built_again(
    bundle: Path, rtx: InstalledLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_tasks, "build_plan", None)
    before = (bundle / "manifest.json").read_bytes()
    assert build_plans(bundle, rtx, profiles(bundle), BuildOptions()) == only(bundle)
    assert (bundle / "manifest.json").read_bytes() == before
    with pytest.raises(InputError, match=r"has tensorrt-rtx-.* plans with other settings .*--force"):
        build_plans(bundle, rtx, profiles(bundle, "32x32:17f"), BuildOptions())


def test_force_replaces_them(bundle: Path, rtx: InstalledLibrary) -> None:
    build_plans(bundle, rtx, profiles(bundle, "32x32:17f"), BuildOptions(), workers=1, force=True)
    assert list(only(bundle).profiles) == ["32x32:17f"]
    assert_complete(bundle, rtx)


def test_sets_live_beside_each_other(bundle: Path, rtx: InstalledLibrary) -> None:
    build_plans(bundle, rtx, profiles(bundle), BuildOptions(targets=("7.5",)), workers=1)
    opened = open_bundle(bundle)
    assert len(opened.manifest.plans) == 2
    for target in ("7.5", "12.0"):
        name, plans = choose(opened, "tensorrt-rtx", rtx.version, target)
        assert target in plans.targets
        assert find(plans, "embed").path.startswith(f"engines/{name}/")
        check_plans(opened, plans)


# what is refused


@pytest.mark.parametrize("damage", ["byte", "missing", "short"])
def test_a_changed_plan(bundle: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = bundle / find(only(bundle), "temporal.00").path
    content = bytearray(path.read_bytes())
    if damage == "byte":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: -1 if damage == "short" else None])
    if damage == "missing":
        path.unlink()
    opened = open_bundle(bundle)  # ONNX Runtime does not need them
    word = "is missing" if damage == "missing" else "was changed after it was built"
    with pytest.raises(BundleError, match=rf"temporal\.00\.plan {word}.*--backend tensorrt-rtx --force"):
        check_plans(opened, only(bundle))
    assert export(["--verify", str(bundle)]) == 1
    assert word in capsys.readouterr().err
    assert export([str(bundle), "--backend", "tensorrt-rtx"]) == 1
    assert word in capsys.readouterr().err


def test_a_plan_outside_of_the_bundle(bundle: Path) -> None:
    plans = only(bundle)
    entry = plans.plans[0].model_copy(update={"path": "engines/../../elsewhere.plan"})
    with pytest.raises(BundleError, match="lies outside engines/"):
        check_plans(open_bundle(bundle), plans.model_copy(update={"plans": (entry,)}))


def test_why_no_set_fits(bundle: Path, bare: Path, rtx: InstalledLibrary) -> None:
    opened = open_bundle(bundle)
    for library, version, target, reason, advice in [
        ("tensorrt", rtx.version, "8.9", "built by tensorrt-rtx", "adacache-export .* --backend tensorrt"),
        ("tensorrt-rtx", "0.1", "8.9", f"built by version {rtx.version}", "adacache-export .* --backend tensorrt-rtx"),
        ("tensorrt-rtx", rtx.version, "9.0", "this GPU has 9.0", "builds for .* and not for 9.0: run with --backend"),
    ]:
        with pytest.raises(EngineError, match=f"{reason}.*{advice}"):
            choose(opened, library, version, target)
    name, plans = next(iter(opened.manifest.plans.items()))
    stale = plans.model_copy(update={"plans": (plans.plans[0].model_copy(update={"graph_sha256": "0" * 64}),)})
    manifest = opened.manifest.model_copy(update={"plans": {name: stale}})
    with pytest.raises(EngineError, match=r"built from other graphs \(text\)"):
        choose(Bundle(bundle, manifest), "tensorrt-rtx", rtx.version, "8.9")
    with pytest.raises(EngineError, match="it has none at all"):
        choose(open_bundle(bare), "tensorrt-rtx", rtx.version, "8.9")
    with pytest.raises(EngineError, match=r"none for spatial\.99 \(full\)"):
        find(plans, "spatial.99")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "is a bundle already; compile plans with --backend"),
        (["--profile", "480p:2s"], "need --backend tensorrt-rtx or tensorrt"),
        (["--backend", "tensorrt-rtx", "--precision", "fp16"], "--precision belongs to the export of a checkpoint"),
        (["--backend", "tensorrt-rtx", "--profile", "480"], "is not SIZE:LENGTH"),
        (["--backend", "tensorrt-rtx", "--profile", "9999x9999:2s"], "no profile of this bundle fits"),
        (["--backend", "tensorrt-rtx", "--optimization-level", "2"], "does not support: --optimization-level"),
        (["--backend", "tensorrt-rtx", "--target", "9.0"], "target 9.0 is unknown"),
    ],
)
def test_a_command_that_cannot_be(
    bare: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export([str(bare), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (bare / "engines").exists()


def test_a_wrong_option_is_told_before_the_export(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "bundle"
    assert export([str(checkpoint), "-o", str(target), "--backend", "tensorrt-rtx", "--profile", "huge"]) == 1
    assert "is not SIZE:LENGTH" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_tensorrt_is_not_its_type_stubs() -> None:
    if any((Path(path) / "tensorrt" / "__init__.py").exists() for path in sys.path):
        pytest.skip("tensorrt is installed")
    from adacache_engines.errors import MissingDependencyError

    with pytest.raises(MissingDependencyError, match=r'tensorrt is not installed .* "adacache-export\[trt\]"'):
        open_library("tensorrt")


def test_auto_says_what_it_chose_and_why(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export([str(bundle), "--backend", "auto"]) == 0
    assert "backend: tensorrt-rtx" in capsys.readouterr().out
    assert export(["--inspect", str(bundle)]) == 0
    assert "compiled engines" in capsys.readouterr().out
    assert json.loads((bundle / "manifest.json").read_text())["plans"]
