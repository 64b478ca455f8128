"""``adacache-compare`` on the fake model: the same numbers again, resumed, refused."""

import json
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.manifest import FileEntry
from adacache_engines.errors import InputError
from adacache_runtime.media.video import write_video
from adacache_runtime.pipeline import Pipeline
from adacache_tune.commands import compare as cli
from adacache_tune.commands.compare import main
from adacache_tune.prompts import read_prompts
from tests.helpers.model import fake_model
from tests.helpers.model.fake_prompts import prompted

Capture = pytest.CaptureFixture[str]
Command = Callable[..., int]
PROMPTS = ("a boat", "a bird", "a bear")
TIMES = ("wall_ms", "time_ratio")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs it on the fake model, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # --score adds to it
    (tmp_path / "prompts.txt").write_text("# some\n\n" + "\n".join(PROMPTS) + "\n")

    def run(*options: str, size: str = "8x8", pipeline: Pipeline | None = None, **changes: Any) -> int:
        opened = pipeline or prompted(tmp_path / "fake.adacache", **changes)
        monkeypatch.setattr(cli.Pipeline, "open", lambda *_, **__: opened)
        usual = ["--prompts", "prompts.txt", "--policies", "interval-2", "interval-3", "--videos", "0"]
        return main(["fake.adacache", "--size", size, *usual, *options])

    return run


def rows(folder: str) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The numbers of quality."""
    lines = [json.loads(line) for line in Path(folder, "runs.jsonl").read_text().splitlines()[1:]]
    return {
        (line["prompt"], line["seed"]): [{k: v for k, v in row.items() if k not in TIMES} for row in line["rows"]]
        for line in lines
    }


def test_the_same_inputs_give_the_same_quality(command: Command) -> None:
    assert command("-o", "a", "--seeds", "0-1", "7") == 0
    assert command("-o", "b", "--seeds", "0", "1", "7") == 0
    assert rows("a") == rows("b")
    assert list(rows("a")) == [(prompt, seed) for prompt in PROMPTS for seed in (0, 1, 7)]
    assert rows("a")["a boat", 0] != rows("a")["a boat", 1]


def stopping(after: int, error: BaseException | None) -> Mapping[str, Callable[..., Any]]:
    """The model, which stops after this many calls: by an error, or by the signal that Ctrl-C sends."""
    functions = fake_model.functions()
    calls = 0

    def embed(given: Mapping[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            if error is None:
                signal.raise_signal(signal.SIGINT)
            else:
                raise error
        return functions["embed"](given)

    return {**functions, "embed": embed}


@pytest.mark.slow
@pytest.mark.parametrize("error", [None, InputError("the model broke")], ids=["interrupted", "failed"])
def test_a_stopped_comparison_goes_on(command: Command, tmp_path: Path, capsys: Capture, error: Any) -> None:
    assert command("-o", "whole", "--videos", "2") == 0
    broken = prompted(tmp_path / "fake.adacache", stopping(6 * (1 + 3 + 2), error))
    assert command("-o", "part", "--videos", "2", pipeline=broken) == (130 if error is None else 1)
    assert len(rows("part")) == 1
    assert sorted(path.name for path in Path("part").rglob("*")) == ["001.mp4", "runs.jsonl", "videos"]
    first = Path("part/runs.jsonl").read_bytes()
    capsys.readouterr()
    assert command("-o", "part", "--videos", "2") == 0
    assert "going on: 1 of 3 generations are in part/runs.jsonl" in capsys.readouterr().err
    assert Path("part/runs.jsonl").read_bytes().startswith(first)
    assert rows("part") == rows("whole")
    whole, part = (json.loads(Path(name, "comparison.json").read_text())["totals"] for name in ("whole", "part"))
    for one, other in zip(whole, part, strict=True):
        for name in ("computed_calls", "psnr_db", "ssim", "latent_l2"):
            assert one["metrics"].get(name) == other["metrics"].get(name)


@pytest.mark.slow
def test_a_finished_comparison_runs_nothing_again(command: Command, tmp_path: Path) -> None:
    assert command("-o", "out", "--videos", "1") == 0
    before = {path.name: path.read_bytes() for path in Path("out").rglob("*.*")}
    still = prompted(tmp_path / "fake.adacache", stopping(0, InputError("it ran")))
    assert command("-o", "out", "--videos", "1", pipeline=still) == 0
    assert {path.name: path.read_bytes() for path in Path("out").rglob("*.*")} == before
    # a video that is wanted and not there is made again, and more prompts and seeds are added
    Path("out/videos/001.mp4").unlink()
    assert command("-o", "out", "--videos", "1", pipeline=still) == 1
    assert command("-o", "out", "--videos", "1", "--seeds", "0-1") == 0
    assert Path("out/videos/001.mp4").read_bytes()
    assert len(rows("out")) == 6


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0, 5, -1, -9])
def test_a_torn_line_is_dropped(command: Command, keep: int) -> None:
    """The last one, wherever it was torn; the first one, too."""
    assert command("-o", "out") == 0
    whole, path = rows("out"), Path("out/runs.jsonl")
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    assert command("-o", "out") == 0
    assert rows("out") == whole
    assert path.read_bytes().count(b"\n") == 4


def test_another_comparison_is_refused(command: Command, capsys: Capture) -> None:
    assert command("-o", "out") == 0
    before = Path("out/runs.jsonl").read_bytes()
    capsys.readouterr()
    assert command("-o", "out", "--steps", "4", "--policies", "interval-2") == 1
    error = capsys.readouterr().err
    assert "out/runs.jsonl holds another comparison (" in error
    assert 'policies.interval-3 was {"name": "interval", "every": 3}, now none; steps was 6, now 4' in error
    assert "give --force to begin anew, or another -o" in error
    other = {"files": {"x": FileEntry(sha256="1" * 64, nbytes=1)}}
    assert command("-o", "out", **other) == 1
    assert "bundle was" in capsys.readouterr().err
    assert Path("out/runs.jsonl").read_bytes() == before
    assert command("-o", "out", "--steps", "4", "--force") == 0
    assert {row[0]["calls"] for row in rows("out").values()} == {4}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [("[]\n", "is no comparison"), ("{\n", "line 1 is not JSON"), ("HEADER{}\n", "line 2 is none of a comparison")],
)
def test_a_damaged_store(command: Command, capsys: Capture, content: str, message: str) -> None:
    assert command("-o", "out") == 0
    first = Path("out/runs.jsonl").read_text().splitlines(keepends=True)[0]
    Path("out/runs.jsonl").write_text(content.replace("HEADER", first))
    capsys.readouterr()
    assert command("-o", "out") == 1
    assert message in capsys.readouterr().err


REFUSED: dict[str, tuple[list[str], str]] = {
    "no prompts": (["--prompts", "nowhere.txt"], "prompts nowhere.txt cannot be read: No such file"),
    "empty": (["--prompts", "empty.txt"], "prompts empty.txt holds none"),
    "binary": (["--prompts", "binary.txt"], "it is no text in UTF-8"),
    "policy": (["--policies", "fastest"], "adacache-fast"),
    "twice": (["--policies", "interval-2", "interval-2.json"], "two policies would be called interval-2"),
    "never": (["--policies", "never"], "never alone has nothing to be compared with"),
    "never.json": (["--policies", "never.json"], "two policies would be called never"),
    "videos": (["--videos", "-1"], "--videos -1 is not possible"),
    "zoom": (["--videos", "1", "--zoom", "9999"], "choose 1 to "),
    "steps": (["--steps", "0"], "1 to 1000"),
    "size": (["--size", "4x4"], "too small for SSIM"),
    "negative": (["--negative-prompt", "blurry"], "takes no negative prompt"),
    "lpips": (["--lpips", "lpips.onnx"], "LPIPS model lpips.onnx cannot be read"),
    "not lpips": (["--lpips", "empty.txt"], "is not a model that ONNX Runtime opens"),
    "score": (["--score", "scoring"], "--score scoring is not MODULE:FUNCTION"),
    "score module": (["--score", "no_such_module:f"], "no_such_module cannot be imported here"),
    "score function": (["--score", "json:agreement"], "json has no function agreement"),
    "folder": (["-o", "nowhere/out"], "nowhere/out cannot be written: No such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_runs(case: str, command: Command, capsys: Capture, tmp_path: Path) -> None:
    Path("empty.txt").write_text("# nothing\n\n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    Path("interval-2.json").write_text('{"name": "interval", "every": 2}')
    options, message = REFUSED[case]
    still = prompted(tmp_path / "fake.adacache", stopping(0, InputError("it ran")))
    assert command(*options, pipeline=still) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""
    assert not list(tmp_path.glob("*out*")) + list(tmp_path.glob("*-comparison"))


@pytest.mark.parametrize("seeds", ["-1", "3-1", "x", "1-"])
def test_seeds_that_are_none(command: Command, seeds: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(f"--seeds={seeds}")


def test_prompts_count_once(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text(" a boat \n# a remark\n\na bird\na boat\n")
    assert read_prompts(path) == ["a boat", "a bird"]


@pytest.mark.slow
def test_a_bundle_with_text_encoder_and_decoder(decoding_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    options = ["--prompts", str(tmp_path / "prompts.txt"), "--policies", "interval-2", "--negative-prompt", "ugly"]
    video = ["--size", "64x64", "--frames", "5", "--steps", "4", "--videos", "1"]
    command = [str(decoding_folder), *options, *video, "-o", str(tmp_path / "out")]
    assert main(command) == 0
    assert "FLOPs" in capsys.readouterr().out
    for quality in rows(str(tmp_path / "out")).values():
        full, reused = quality
        assert (full["computed"], full["same"]) == (4, True)
        assert reused["computed"] < 4
        assert reused["flops"] < full["flops"]
        assert reused["ssim"] <= 1
    assert (tmp_path / "out" / "videos" / "001.mp4").stat().st_size


def test_a_model_that_starts_from_an_image(command: Command, tmp_path: Path, capsys: Capture) -> None:
    """It is refused without one, and the folder belongs to the image."""
    changes = fake_model.starting_from_image(fake_model.manifest())
    assert command("-o", "none", **changes) == 1
    assert "this model starts from an image, and none is given" in capsys.readouterr().err
    assert not Path("none").exists()
    for number in (0, 200):
        write_video(tmp_path / f"{number}.png", np.full((1, 8, 8, 3), number, np.uint8), fps=1)
    assert command("-o", "some", "--image", "0.png", **changes) == 0
    assert command("-o", "some", "--image", "200.png", **changes) == 1
    assert "another comparison" in capsys.readouterr().err
