"""Tokens and operations in ``adacache-export --inspect``."""

import json
import re
from pathlib import Path

import pytest

from adacache_engines.bundle.files import MANIFEST, dump_manifest
from adacache_engines.bundle.manifest import Manifest, Preset
from adacache_export.commands.export import main as export
from adacache_export.families.registry import FAMILIES
from adacache_runtime.caching.presets import PRESETS
from adacache_runtime.trace import Trace
from tests.helpers.model import fake_model
from tests.helpers.model.bundle_changes import rewrite
from tests.helpers.tiny_models.configurations import PUBLISHED
from tests.helpers.tiny_models.operation_counts import SIZES, counted_fake, manifest_of, trace_of

Capture = pytest.CaptureFixture[str]
USAGE = 2


def written(folder: Path, manifest: Manifest) -> str:
    (folder / MANIFEST).write_text(dump_manifest(manifest), encoding="utf-8")
    return str(folder)


def inspected(capsys: Capture, *arguments: str) -> list[list[str]]:
    """The cells of every row that was printed."""
    assert export(["--inspect", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if line[:1] in ("│", "┃")]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one line."""
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def open_sora(tmp_path: Path) -> str:
    return written(tmp_path, manifest_of("open-sora-1.2", PUBLISHED["open-sora-1.2"]))


def test_the_default_video(open_sora: str, capsys: Capture) -> None:
    rows = inspected(capsys, open_sora)
    facts = {row[0]: row[1] for row in rows if len(row) == 2}
    assert facts["tokens"] == "854x480 pixels, 51 frames: 15 x 1590 = 23850 a sample, and 300 of text"
    assert facts["full call"] == "113 TFLOP (one prompt, 2 branches of guidance)"
    assert facts["cached call"] == "5.32 GFLOP, 0.0047% of a full one"
    table = {row[0]: row[1:] for row in rows if row[0] in PRESETS}
    assert set(table) == set(PRESETS)
    assert table["never"] == ["30", "3,390 TFLOP", "100%"]
    assert table["interval-3"] == ["11", "1,243 TFLOP", "37%"]
    assert table["adacache-fast"] == ["8 to 30", "904 to 3,390 TFLOP", "27% to 100%"]


@pytest.mark.parametrize(("name", "calls"), [("open-sora-1.2", 30), ("latte-1", 50), ("open-sora-plan-1.1", 158)])
def test_every_call_of_the_sampler_counts(name: str, calls: int, tmp_path: Path, capsys: Capture) -> None:
    """PNDM starts with more calls than steps."""
    rows = inspected(capsys, written(tmp_path, manifest_of(name, PUBLISHED[name])))
    assert next(row for row in rows if row[0] == "never")[1] == str(calls)


def test_presets_of_the_bundle_come_first(tmp_path: Path, capsys: Capture) -> None:
    own = {
        name: Preset(policy={"name": "interval", "every": every}) for name, every in (("mine", 5), ("interval-2", 6))
    }
    manifest = manifest_of("latte-1", PUBLISHED["latte-1"]).model_copy(update={"policies": own})
    rows = inspected(capsys, written(tmp_path, manifest))
    assert {row[0]: row[1] for row in rows if row[0] in own} == {"mine": "11", "interval-2": "10"}


def test_presets_for_single_modules(tmp_path: Path, capsys: Capture) -> None:
    """They are listed; counted where they suit the stages, here whole blocks; and refused where they are named."""
    own = FAMILIES["open-sora-1.2"].describe(PUBLISHED["open-sora-1.2"], None).policies
    manifest = manifest_of("open-sora-1.2", PUBLISHED["open-sora-1.2"]).model_copy(update={"policies": own})
    rows = inspected(capsys, folder := written(tmp_path, manifest))
    assert ["presets", "pab1, pab2, pab3, tgate, delta-dit, teacache-slow, teacache-fast"] in rows
    counted = {row[0]: row[1:] for row in rows if row[0] in own}
    blocks, stack = ["30", "3,318 TFLOP", "98%"], ["2 to 30", "226 to 3,390 TFLOP", "7% to 100%"]
    assert counted == {
        **dict.fromkeys(("delta-dit", "delta-dit-as-released"), blocks),
        **dict.fromkeys(("teacache-slow", "teacache-fast"), stack),
    }
    assert export(["--inspect", folder, "--policy", "pab1"]) == 1
    assert "--granularity module" in capsys.readouterr().err


def test_another_video_and_chosen_policies(open_sora: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"name": "interval", "every": 10}))
    chosen = ["--policy", str(tmp_path / "mine.json"), "--policy", "adacache-slow"]
    rows = inspected(capsys, open_sora, "--size", "1280x720", "--frames", "102", *chosen)
    assert ["tokens", "1280x720 pixels, 102 frames: 30 x 3600 = 108000 a sample, and 300 of text"] in rows
    assert ["mine", "4", "2,271 TFLOP", "13%"] in rows
    assert ["adacache-slow", "12 to 30", "6,811 to 17,027 TFLOP", "40% to 100%"] in rows
    assert not any(row[0] == "never" for row in rows)


def test_a_traced_run(tmp_path: Path, capsys: Capture) -> None:
    folder, every = written(tmp_path, counted_fake()), (True,) * 4
    (tmp_path / "run.json").write_text(trace_of(every, (False, True, False, False), every).to_json())
    two = Trace(trace_of((True,), (False,)).calls, {**SIZES, "samples": 2, "batch": 4})
    (tmp_path / "two.json").write_text(two.to_json())
    rows = inspected(capsys, folder, "--trace", str(tmp_path / "run.json"), "--trace", str(tmp_path / "two.json"))
    assert ["run.json (3 x 5 tokens)", "3 of 3", "0.03 MFLOP", "86.4%"] in rows
    assert ["two.json (2 prompts of 3 x 5 tokens)", "1 of 2", "0.03 MFLOP", "68.5%"] in rows


def test_stages_that_do_not_count(tmp_path: Path, capsys: Capture) -> None:
    """A module need not count its operations: such a bundle is shown, and says what it lacks."""
    folder = written(tmp_path, fake_model.manifest())
    rewrite(tmp_path, lambda content: [stage.pop("flops") for stage in content["stages"]])
    shown = " ".join(" ".join(row) for row in inspected(capsys, folder))
    assert "4 x 10 = 40 a sample" in shown
    assert re.search("stages of this model do not count +their operations", shown)
    assert "adacache-fast" not in shown
    for option in (["--policy", "never"], ["--trace", str(tmp_path / "run.json")]):
        assert export(["--inspect", folder, *option]) == 1
        assert "do not count their operations" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "fastest"], "presets: never"),
        (["--size", "4000x4000"], "allowed 1 to 240"),
        (["--frames", "0"], "allowed 1 to 120"),
        (["--trace", "missing.json"], "missing.json cannot be read"),
    ],
)
def test_what_cannot_be_counted(open_sora: str, arguments: list[str], message: str, capsys: Capture) -> None:
    assert export(["--inspect", open_sora, *arguments]) == 1
    told = capsys.readouterr()
    assert message in told.err
    assert told.out == ""


def test_a_trace_of_another_bundle_is_named(open_sora: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "other.json").write_text(trace_of((True,) * 4).to_json())
    assert export(["--inspect", open_sora, "--trace", str(tmp_path / "other.json")]) == 1
    assert "other.json: the trace is of another bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["--size", "24x24"], ["--frames", "8"], ["--policy", "never"], ["--trace", "run.json"]]
)
@pytest.mark.parametrize("mode", [[], ["--verify"]])
def test_options_of_inspect_need_it(mode: list[str], option: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        export(["bundle", *mode, *option])
    assert stopped.value.code == USAGE
    assert f"{option[0]}: only with --inspect" in capsys.readouterr().err
