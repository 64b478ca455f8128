"""Plans of TensorRT-RTX that are refused, and commands that cannot be."""

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.errors import BundleError, EngineError
from adacache_engines.tensorrt.library import InstalledLibrary, open_library
from adacache_engines.tensorrt.plans import check_plans, choose, find
from adacache_export.commands.export import main as export
from tests.helpers.gpu.built_plans import only
from tests.helpers.model.bundle_changes import rewrite

pytestmark = pytest.mark.slow  # an export, and plans that TensorRT-RTX builds


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
    word = {"missing": "is missing", "short": r"has \d+ bytes instead of", "byte": "was changed after"}[damage]
    with pytest.raises(BundleError, match=rf"temporal\.00\.plan {word}.*--backend tensorrt-rtx --force"):
        check_plans(opened, only(bundle))
    assert export(["--verify", str(bundle)]) == 1
    assert re.search(word, capsys.readouterr().err)
    assert export([str(bundle), "--backend", "tensorrt-rtx"]) == 1
    assert re.search(word, capsys.readouterr().err)


def test_a_plan_outside_of_the_bundle(bundle: Path) -> None:
    def move(content: dict[str, Any], path: str) -> None:
        (plans,) = content["plans"].values()
        plans["plans"][0]["path"] = path

    for path in ("engines/../../elsewhere.plan", "onnx/embed.onnx"):
        rewrite(bundle, partial(move, path=path))
        with pytest.raises(BundleError, match=r"plans\.0\.path: .* (outside the bundle|not one of engines/)"):
            open_bundle(bundle)


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
