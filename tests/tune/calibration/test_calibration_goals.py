"""Calibrations that are stopped and go on, goals that are not reached, and bundles for which less is possible."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adacache_engines.bundle.files import MANIFEST
from adacache_engines.bundle.manifest import Manifest
from adacache_engines.errors import InputError
from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.presets import policy_from
from adacache_runtime.denoising import denoiser as loop
from adacache_runtime.request import Request
from adacache_tune.calibration import process
from adacache_tune.commands import calibrate as cli
from adacache_tune.comparison.measure import compare
from tests.helpers.model import fake_model
from tests.helpers.policies.calibration_command import (
    HELD_OUT,
    PROMPTS,
    PSNR,
    STEPS,
    Capture,
    Command,
    last_line,
    report,
)
from tests.helpers.policies.calibration_records import without_probes

# stopped, and going on


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, int]:
    """What an undisturbed calibration gives, and the calls of the first block that it takes."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(tmp_path_factory.mktemp("whole"))
        Path("prompts.txt").write_text("\n".join(PROMPTS))
        fake_model.write_bundle(Path.cwd() / "fake.adacache")
        made = Command(Path.cwd() / "fake.adacache", monkeypatch)
        monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: made.now))
        assert made(*PSNR) == 0
        return made.manifest(), made.blocks


STOPS = {"recording full compute": 0.1, "trying intervals": 0.4, "trying what was found": 0.7, "confirming": 0.97}


@pytest.mark.slow
@pytest.mark.parametrize("error", [None, InputError("the model broke")], ids=["interrupted", "failed"])
@pytest.mark.parametrize("phase", STOPS)
def test_a_stopped_calibration_goes_on(
    command: Command, whole: tuple[Manifest, int], capsys: Capture, phase: str, error: BaseException | None
) -> None:
    manifest, blocks = whole
    before = (command.folder / MANIFEST).read_bytes()
    command.stop_after, command.error = int(STOPS[phase] * blocks), error
    assert command(*PSNR) == (130 if error is None else 1)
    phases = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adacache-calibrate: ")]
    assert phases[-2] == f"adacache-calibrate: {phase}"
    assert (command.folder / MANIFEST).read_bytes() == before
    assert not Path("fake-calibration/calibrated.json").exists()
    records = {path: path.read_bytes() for path in Path("fake-calibration").glob("record-*")}
    command.stop_after = None
    assert command(*PSNR) == 0
    assert 0 < command.blocks < blocks
    assert all(path.read_bytes() == content for path, content in records.items())
    assert command.manifest().policies == manifest.policies


# goals that are not reached


def test_a_quality_that_only_full_compute_has(command: Command, capsys: Capture) -> None:
    before = (command.folder / MANIFEST).read_bytes()
    assert command("--target-psnr", "98", methods=["interval", "interval-extrapolated", "listed"]) == 1
    assert last_line(capsys) == (
        "adacache-calibrate: no method reaches PSNR 98 dB but by computing every call; ask for less"
    )
    assert (command.folder / MANIFEST).read_bytes() == before
    assert not Path("fake-calibration/calibrated.json").exists()


def test_a_speed_that_nothing_gives(command: Command, capsys: Capture) -> None:
    """The sampler and the final layer run in reused calls, too."""
    before = (command.folder / MANIFEST).read_bytes()
    assert command("--target-speedup", "30") == 1
    assert "no policy kept speed-up 30 on the held-out prompts: the best, " in (line := last_line(capsys))
    assert line.endswith(" times the speed; ask for less, or give more prompts")
    assert (command.folder / MANIFEST).read_bytes() == before


def test_held_out_prompts_that_do_worse(command: Command, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (command.folder / MANIFEST).read_bytes()
    monkeypatch.setattr(process, "TOLERANCE_DB", -60.0)
    assert command(*PSNR) == 1
    assert "no policy kept PSNR 26 dB on the held-out prompts: the best, " in last_line(capsys)
    assert (command.folder / MANIFEST).read_bytes() == before


# bundles and videos for which less is possible


def without_decoder(command: Command) -> None:
    command.change(latent=command.manifest().latent.model_copy(update={"decoder": "none"}))


def test_a_quality_of_pixels_needs_a_decoder(command: Command, capsys: Capture) -> None:
    without_decoder(command)
    assert command(*PSNR) == 1
    line = last_line(capsys)
    assert "--target-psnr needs pixels, and this bundle has no decoder; " in line
    assert line.endswith(", or give --target-speedup")
    assert not Path("fake-calibration").exists()


def test_a_speed_without_a_decoder(command: Command) -> None:
    """Quality is that of the latents; frames may be too small for SSIM."""
    without_decoder(command)
    assert command("--target-speedup", "1.8", size="4x4") == 0
    preset = command.manifest().policies["calibrated"]
    assert preset.measured.keys() == {"latents_db", "speed_up", "computed_calls", "calls", "prompts"}
    assert preset.measured["speed_up"] >= 1.8 * 0.97
    asked = [
        Request(prompts=(prompt,), height=4, width=4, steps=STEPS, seed=seed) for seed, prompt in enumerate(HELD_OUT, 5)
    ]
    policy = policy_from("calibrated", command.manifest().policies)
    levels = [-20 * math.log10(one.rows[1].latent_l2) for one in compare(command.pipeline(), asked, {"it": policy})]
    assert preset.measured["latents_db"] == pytest.approx(sum(levels) / 2, abs=1e-3)


@pytest.mark.slow
def test_a_method_whose_probe_is_missing(command: Command, capsys: Capture) -> None:
    """Left out with a remark, or refused where it was named; so is motion of an image."""
    stages = command.manifest().stages
    command.change(stages=tuple(without_probes(one) if one.graph.name == "embed" else one for one in stages))
    remedy = "measures block_input, which this bundle has no probe for; export with --probe block_input"
    assert command(*PSNR, methods=["interval", "teacache-extrapolated"]) == 1
    assert last_line(capsys) == f"adacache-calibrate: teacache-extrapolated {remedy}, or leave it out of --methods"
    assert not Path("fake-calibration").exists()
    assert command(*PSNR, "--frames", "1", "--steps", "5", "--confirm", "12", methods=[]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[:4] == [
        "adacache-calibrate: without adacache-moreg: it goes by motion, and an image has none; choose more --frames",
        f"adacache-calibrate: without teacache: it {remedy}",
        "adacache-calibrate: without adacache-moreg-extrapolated: it goes by motion, and an image has none; choose "
        "more --frames",
        f"adacache-calibrate: without teacache-extrapolated: it {remedy}",
    ]
    tried = {one["method"] for one in report()["methods"]}
    assert tried <= {name for name in cli.ALL if "teacache" not in name and "moreg" not in name}
    assert {"listed", "magcache"} <= tried


@pytest.mark.slow
def test_methods_that_measure(command: Command) -> None:
    """Their thresholds are found on the recorded prompts, and hold on others."""
    assert command("--target-speedup", "1.3", methods=["teacache", "adacache-moreg", "adacache-moreg"]) == 0
    policies = command.manifest().policies
    assert [one["method"] for one in report()["methods"]].count("adacache-moreg") <= 1
    chosen: Any = policy_from("calibrated", policies)
    assert chosen.name in ("teacache", "adacache")
    assert not isinstance(chosen, AdaCache) or chosen.moreg is not None
