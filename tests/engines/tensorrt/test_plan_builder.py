"""Plans of TensorRT-RTX, which builds them without a GPU: what a bundle gets, and what it has already."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from adacache_engines.bundle.files import open_bundle, read_manifest, replace_manifest
from adacache_engines.bundle.manifest import PlanSet
from adacache_engines.errors import InputError
from adacache_engines.tensorrt import build_tasks, plan_builder
from adacache_engines.tensorrt.build import BuildOptions, build_plan
from adacache_engines.tensorrt.library import InstalledLibrary
from adacache_engines.tensorrt.plan_builder import build_plans
from adacache_engines.tensorrt.plans import check_plans, choose, find
from adacache_export.commands.export import main as export
from adacache_export.convert import convert
from adacache_export.options import Options
from tests.helpers.gpu.built_plans import assert_complete, only, profiles
from tests.helpers.originals.reference import DEMO
from tools.speed.checkpoint import config_of, write_checkpoint
from tools.speed.size import Size

pytestmark = pytest.mark.slow  # an export, and plans that TensorRT-RTX builds


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
