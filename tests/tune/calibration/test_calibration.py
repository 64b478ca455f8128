"""``adacache-calibrate`` on the fake model: what it writes, going on where it stopped, what it refuses."""

import hashlib
import json
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adacache_engines.bundle.files import MANIFEST, Bundle, open_bundle, read_manifest, replace_manifest
from adacache_engines.bundle.manifest import Manifest, Preset
from adacache_engines.contract.fake import FakeBackend
from adacache_engines.errors import InputError
from adacache_runtime.caching.policies.adacache import AdaCache
from adacache_runtime.caching.policies.interval import FixedInterval
from adacache_runtime.caching.policies.listed import ListedCalls
from adacache_runtime.caching.presets import policy_from
from adacache_runtime.denoising import denoiser as loop
from adacache_runtime.request import Request
from adacache_tune.calibration import process
from adacache_tune.calibration.forecast import BEST_DB
from adacache_tune.calibration.trials import run_trials
from adacache_tune.commands import calibrate as cli
from adacache_tune.commands.calibrate import main
from adacache_tune.comparison.measure import compare
from tests.helpers.model import fake_model
from tests.helpers.model.fake_model import BLOCKS
from tests.helpers.model.fake_prompts import Prompted
from tests.helpers.policies.calibration_records import without_probes

Capture = pytest.CaptureFixture[str]
PROMPTS = ("a boat", "a bird", "a bear", "a bat", "a bee", "a bull")
RECORDED, HELD_OUT = ("a boat", "a bird", "a bat", "a bee"), ("a bear", "a bull")
PSNR = ("--target-psnr", "26")
STEPS = 8
SEARCHED = ("teacache", "magcache", "adacache-scaled", "listed-extrapolated", "interval")


@dataclass
class Command:
    """Runs it on the fake model, on a clock that engine calls alone move: a block takes 1 ms, all else 0.02 ms.

    Attributes:
        stop_after: calls of the first block; then it is interrupted, or fails by ``error``.
        calls: of any engine, in the last run.
    """

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    stop_after: int | None = None
    error: BaseException | None = None
    now: float = 0.0
    blocks: int = 0
    calls: list[str] = field(default_factory=list)

    def __call__(self, *options: str, size: str = "8x8", methods: Sequence[str] = ("interval", "listed")) -> int:
        self.blocks, self.now = 0, 0.0
        opened = self.pipeline()
        self.monkeypatch.setattr(cli.Pipeline, "open", lambda *_, **__: opened)
        usual = [
            "--prompts",
            "prompts.txt",
            "--size",
            size,
            "--steps",
            str(STEPS),
            "--tries",
            "3",
            "--gaps",
            "4",
            "--seed",
            "1",
        ]
        named = ["--methods", *methods] if methods else []
        return main([self.folder.name, *usual, *named, *options])

    def pipeline(self) -> Prompted:
        backend = FakeBackend({name: self._clocked(name) for name in fake_model.functions()})
        self.calls = backend.log
        return Prompted(Bundle(self.folder, read_manifest(self.folder)), backend)

    def manifest(self) -> Manifest:
        return open_bundle(self.folder).manifest

    def change(self, **changes: Any) -> None:
        """Of the bundle's manifest."""
        replace_manifest(self.folder, self.manifest().model_copy(update=changes))

    def _clocked(self, name: str) -> Callable[..., Any]:
        function = fake_model.functions()[name]

        def run(given: Mapping[str, Any]) -> Any:
            self.now += 1e-3 if name in BLOCKS else 2e-5
            self.blocks += name == BLOCKS[0]
            if self.stop_after is not None and self.blocks > self.stop_after:
                if self.error is None:
                    signal.raise_signal(signal.SIGINT)
                else:
                    raise self.error
            return function(given)

        return run


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(PROMPTS))
    fake_model.write_bundle(tmp_path / "fake.adacache")
    made = Command(tmp_path / "fake.adacache", monkeypatch)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


def report(folder: str = "fake-calibration") -> Any:
    return json.loads(Path(folder, "calibrated.json").read_text())


def last_line(capsys: Capture) -> str:
    return capsys.readouterr().err.splitlines()[-1]


# what it writes


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


# what is refused


@pytest.mark.slow
def test_another_calibration_is_refused(command: Command, capsys: Capture) -> None:
    assert command(*PSNR) == 0
    files = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert command(*PSNR, "--guidance", "3", "--seed", "5") == 1
    assert last_line(capsys) == (
        "adacache-calibrate: fake-calibration holds another calibration (other guidance, seed); give --force to begin "
        "anew, or another -o"
    )
    command.change(producer="another program")
    assert command(*PSNR) == 1
    assert "(other bundle); give --force to begin anew" in last_line(capsys)
    command.change(producer="tests")
    assert command.calls == []
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == files
    assert command(*PSNR, "--gaps", "3", "-o", "other") == 0
    assert command(*PSNR, "--gaps", "3", "--force") == 0
    assert command.calls
    assert json.loads(Path("fake-calibration/settings.json").read_text())["gaps"] == 3


REFUSED: dict[str, tuple[list[str], str]] = {
    "no prompts": (["--prompts", "nowhere.txt"], "prompts nowhere.txt cannot be read: No such file"),
    "few": (["--prompts", "five.txt"], "4 to record and 1 to confirm on are too few prompts; give at least 6 prompts"),
    "few held out": (["--held-out", "one.txt"], "6 to record and 1 to confirm on are too few prompts; give at least 2"),
    "overlap": (["--held-out", "five.txt"], "five.txt has prompts of prompts.txt, such as 'a boat'; take them out"),
    "psnr": (["--target-psnr", "0"], "--target-psnr 0.0 is not possible; choose at least 1"),
    "nan": (["--target-psnr", "nan"], "--target-psnr nan is not possible; choose at least 1"),
    "infinite": (["--target-psnr", "inf"], "--target-psnr inf is not possible"),
    "confirm": (["--confirm", "0"], "--confirm 0 is not possible; choose at least 1"),
    "gaps": (["--gaps", "0"], "--gaps 0 is not possible; choose at least 1"),
    "tries": (["--tries", "-1"], "--tries -1 is not possible; choose at least 0"),
    "seed": (["--seed", "-1"], "seed -1 is not possible"),
    "steps": (["--steps", "0"], "1 to 1000"),
    "few steps": (["--steps", "2"], "2 calls of the model are too few to choose from; choose more --steps"),
    "frames": (["--frames", "0"], "frames 0 is not possible"),
    "size": (["--size", "6x8"], "frames of 6x8 pixels are too small for SSIM"),
    "guidance": (["--guidance", "-1"], "guidance -1.0 is not possible"),
    "name": (["--name", "a+b"], "--name 'a+b' is not possible; choose letters"),
    "no name": (["--name", ""], "--name '' is not possible"),
    "motion": (
        ["--frames", "1", "--methods", "adacache-moreg"],
        "adacache-moreg goes by motion, and an image has none",
    ),
    "folder": (["-o", "nowhere/out"], "nowhere/out cannot be used: No such file or directory; choose another -o"),
    "file": (["-o", "prompts.txt"], "prompts.txt cannot be used: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_runs(case: str, command: Command, capsys: Capture) -> None:
    Path("one.txt").write_text("a bull frog")
    Path("five.txt").write_text("\n".join(PROMPTS[:5]))
    options, message = REFUSED[case]
    files = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    goal = [] if options[0] == "--target-psnr" else PSNR
    assert command(*goal, *options) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""
    assert command.calls == []
    assert not Path("fake-calibration").exists()
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("goal", [[], [*PSNR, "--target-speedup", "2"], ["--target-psnr", "high"]])
def test_one_goal(command: Command, goal: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(*goal)


def test_speeds_that_are_none(command: Command, capsys: Capture) -> None:
    for speed in ("1", "0.5", "nan"):
        assert command("--target-speedup", speed) == 1
        assert "--target-speedup" in (line := last_line(capsys))
        assert line.endswith("is not possible; choose at least 1.01")


def test_damaged_files(command: Command, capsys: Capture) -> None:
    assert command(*PSNR, methods=["interval"]) == 0
    for name, content, message in (
        ("record-001.npz", "no record", "record-001.npz is no record of adacache-calibrate"),
        ("settings.json", "{", "settings.json is damaged (Expecting property name"),
        ("settings.json", "[]", "settings.json is damaged (it is no object); give --force to begin anew"),
    ):
        Path("fake-calibration", name).write_text(content)
        assert command(*PSNR, methods=["interval"]) == 1
        assert message in last_line(capsys)
    assert command(*PSNR, "--force", methods=["interval"]) == 0


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


# the manifest


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
