"""What ``adacache-calibrate`` writes, on the fake model, and that it runs nothing twice."""

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.bundle.files import MANIFEST
from adacache_engines.bundle.manifest import Preset
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.listed import ListedCalls
from adacache_runtime.caching.presets import policy_from
from adacache_runtime.request import Request
from adacache_tune.calibration.forecast import BEST_DB
from adacache_tune.calibration.trials import run_trials
from adacache_tune.comparison.measure import compare
from tests.helpers.policies.calibration_command import (
    HELD_OUT,
    PSNR,
    RECORDED,
    SEARCHED,
    STEPS,
    Capture,
    Command,
    report,
)


def test_presets_are_written_into_the_bundle(command: Command, capsys: Capture) -> None:
    other = Preset(policy={"name": "interval", "every": 4}, note="kept")
    command.change(policies={"other": other, "calibrated": other})
    before = command.manifest()
    assert command(*PSNR, "--confirm", "2", methods=["interval", "listed", "listed-extrapolated"]) == 0
    after = command.manifest()
    assert after.model_copy(update={"policies": before.policies}) == before
    best, second = (one["method"] for one in report()["methods"])
    assert list(after.policies) == ["other", "calibrated", f"calibrated-{best}", f"calibrated-{second}"]
    assert after.policies["other"] == other
    assert after.policies["calibrated"] == after.policies[f"calibrated-{best}"]
    for one in report()["methods"]:
        name, measured = f"calibrated-{one['method']}", one["measured"]
        chosen: Any = policy_from(name, after.policies)
        assert chosen.model_dump(mode="json") == one["policy"]
        preset = after.policies[name]
        assert preset.measured == {
            "psnr_db": round(measured["quality_db"]["mean"], 3),
            "speed_up": round(measured["speed_up"], 3),
            "computed_calls": measured["computed"],
            "calls": STEPS,
            "prompts": len(HELD_OUT),
        }
        assert preset.note.startswith(f"{one['method']}, calibrated for PSNR 26 dB on 4 prompts; on 2 others ")
        assert preset.note.endswith("(fake)")
    assert (report()["goal"], report()["recorded_prompts"]) == ("PSNR 26 dB", len(RECORDED))
    shown = capsys.readouterr()
    assert f"fake.adacache: presets calibrated, calibrated-{best}, calibrated-{second}\n" in shown.out
    assert shown.out.endswith("fake-calibration/calibrated.json\n")
    assert best in shown.out
    intervals = report()["fixed_intervals"]
    assert intervals
    for label, measured in intervals.items():
        row = next(line for line in shown.out.splitlines() if f"for comparison: {label} " in line)
        assert f"{measured['speed_up']:.2f}" in row


@pytest.mark.slow
def test_what_calibration_gives_does_better_than_fixed_intervals(command: Command) -> None:
    """At any goal, on the prompts that confirmed it."""
    for target in ("22", "30"):
        assert command("--target-psnr", target, "--confirm", "5", methods=SEARCHED) == 0
        told = report()
        for one in told["methods"]:
            speed_up, level = one["measured"]["speed_up"], one["measured"]["quality_db"]["mean"]
            as_fast = [plain for plain in told["fixed_intervals"].values() if plain["speed_up"] >= speed_up]
            assert one["method"] == "interval" or all(plain["quality_db"]["mean"] <= level for plain in as_fast)


def test_the_measured_numbers_are_those_of_real_runs(command: Command) -> None:
    """On the held-out prompts, whose seeds follow those of the recorded ones."""
    assert command(*PSNR, "--name", "mine") == 0
    manifest = command.manifest()
    asked = [
        Request(prompts=(prompt,), height=8, width=8, steps=STEPS, seed=seed) for seed, prompt in enumerate(HELD_OUT, 5)
    ]
    compared = compare(command.pipeline(), asked, {"mine": policy_from("mine", manifest.policies)})
    rows = [one.rows[1] for one in compared]
    psnr = [row.psnr_db for row in rows if row.psnr_db is not None]
    measured = manifest.policies["mine"].measured
    assert measured["psnr_db"] == pytest.approx(sum(psnr) / 2, abs=1e-3)
    assert measured["psnr_db"] >= 25
    assert measured["computed_calls"] == sum(row.computed for row in rows) / 2 < STEPS
    computed = measured["computed_calls"]  # by the clock: 4 blocks, and about 8 other engines a call
    assert measured["speed_up"] == pytest.approx(4.15 * STEPS / (4.15 * computed + 0.15 * (STEPS - computed)), rel=0.03)


def test_a_trial_is_the_mean_of_real_runs(command: Command, tmp_path: Path) -> None:
    """By the clock a computed call takes 4 ms for its blocks, and any call six times 0.02 ms or a little less."""
    asked = [Request(prompts=(prompt,), height=8, width=8, steps=STEPS) for prompt in HELD_OUT]
    policies = {"listed": ListedCalls(computed=(1, 5)), "full": FixedInterval(every=1)}
    counts: list[int] = []

    def progress(steps: int) -> AbstractContextManager[Callable[[], None]]:
        counts.append(steps)
        return nullcontext(lambda: counts.append(-1))

    first, second = (run_trials(command.pipeline(), asked, policies, tmp_path, {}, progress) for _ in range(2))
    assert first == second
    calls = STEPS * (1 + len(HELD_OUT) * 3)  # one generation warms up
    assert counts == [calls, *[-1] * calls, 0]
    compared = [one.rows for one in compare(command.pipeline(), asked, policies)]
    trial, full = first["listed"], first["full"]
    levels = [rows[1].psnr_db for rows in compared if rows[1].psnr_db is not None]
    assert trial.quality_db.mean == pytest.approx(sum(levels) / 2)
    assert trial.ssim == pytest.approx(sum(rows[1].ssim or 0 for rows in compared) / 2)
    assert (trial.computed, trial.calls, trial.prompts) == (2, STEPS, 2)
    assert trial.reuse_share == pytest.approx(0.1 / 4.1, rel=0.1)
    assert trial.speed_up == pytest.approx(STEPS / (2 + (STEPS - 2) * trial.reuse_share), rel=0.02)
    assert (full.quality_db.mean, full.ssim, full.reuse_share, full.computed) == (BEST_DB, 1, 0, STEPS)


def test_the_same_call_again_runs_nothing(command: Command, capsys: Capture) -> None:
    assert command(*PSNR) == 0
    files = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert {path.name for path in files if path.match("record-*.npz")} == {f"record-00{i}.npz" for i in range(4)}
    assert command.calls
    capsys.readouterr()
    assert command(*PSNR) == 0
    assert command.calls == []
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == files
    error = capsys.readouterr().err
    assert "recording" not in error
    assert "trying" not in error
    assert "confirming" not in error


def test_another_goal_takes_the_records_and_runs_that_there_are(command: Command, capsys: Capture) -> None:
    assert command(*PSNR) == 0
    first, capacity = command.manifest().policies["calibrated"], len(command.calls)
    capsys.readouterr()
    assert command("--target-speedup", "1.5", "--confirm", "1") == 0
    error = capsys.readouterr().err
    assert "recording" not in error
    assert "trying intervals" not in error
    assert len(command.calls) < capacity
    second = command.manifest().policies["calibrated"]
    assert second != first
    assert second.measured["speed_up"] >= 1.5 * 0.97


def test_held_out_prompts_of_their_own(command: Command) -> None:
    Path("prompts.txt").write_text("\n".join(RECORDED[:2]))
    Path("held.txt").write_text("\n".join(HELD_OUT))
    assert command(*PSNR, "--held-out", "held.txt", methods=["interval"]) == 0
    assert len(list(Path("fake-calibration").glob("record-*.npz"))) == 2
    lines = [line for path in Path("fake-calibration").glob("runs-*") for line in path.read_text().splitlines()[1:]]
    assert {json.loads(line)["prompt"] for line in lines} == {*RECORDED[:2], *HELD_OUT}


def test_what_was_measured_survives_and_older_manifests_open(command: Command) -> None:
    preset = Preset(policy={"name": "never"}, note="n", measured={"psnr_db": 31.25, "calls": 30})
    command.change(policies={"one": preset})
    assert command.manifest().policies == {"one": preset}
    path = command.folder / MANIFEST
    content = json.loads(path.read_text())
    del content["digest"], content["policies"]["one"]["measured"]

    def canonical(content: object) -> str:
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    digest = hashlib.sha256(canonical(content).encode()).hexdigest()
    path.write_text(canonical({**content, "digest": digest}))
    assert command.manifest().policies == {"one": preset.model_copy(update={"measured": {}})}
