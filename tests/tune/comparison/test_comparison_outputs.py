"""What ``adacache-compare`` writes: table, JSON, CSV, plot, videos; and adherence, and bundles without pixels."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from rich.console import Console

from adacache_runtime.caching.presets import PRESETS
from adacache_tune.commands import compare as cli
from adacache_tune.commands.compare import main
from adacache_tune.comparison import tables
from adacache_tune.comparison.measure import Row
from adacache_tune.comparison.plot import kind_of, plot_frontier
from adacache_tune.comparison.side_by_side import GAP, side_by_side
from adacache_tune.comparison.statistics import Estimate
from adacache_tune.comparison.store import Finished
from adacache_tune.comparison.summary import METRICS, Total, totals
from tests.helpers.model import fake_model
from tests.helpers.model.fake_lpips import write_lpips
from tests.helpers.model.fake_prompts import prompted

Capture = pytest.CaptureFixture[str]
PROMPTS = ("a boat", "a bird")
SCORING = """
def agreement(latents, prompt):
    assert latents.dtype.name == "float32" and latents.shape == (3, 4, 7, 8)
    return {"boat": "boat" in prompt, "half": 0.5}

def broken(latents, prompt):
    return {}["size"]

def empty(latents, prompt):
    return {}
"""


def run(folder: Path, *options: str, **changes: Any) -> int:
    """In the folder, on the fake model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])  # --score adds to it
        patch.setattr(cli.Pipeline, "open", lambda *_, **__: prompted(folder / "fake.adacache", **changes))
        (folder / "prompts.txt").write_text("\n".join(PROMPTS))
        (folder / "scoring_of_tests.py").write_text(SCORING)
        usual = ["--prompts", "prompts.txt", "--size", "8x7", "--policies", "interval-2", "interval-3", "every.json"]
        (folder / "every.json").write_text('{"name": "interval", "every": 1}')
        return main(["fake.adacache", *usual, *options])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with everything, with its table beside it. Not to be changed."""
    folder = tmp_path_factory.mktemp("comparison")
    write_lpips(folder / "lpips.onnx")
    with (folder / "table.txt").open("w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        options = ["--seeds", "0-1", "--lpips", "lpips.onnx", "--score", "scoring_of_tests:agreement"]
        assert run(folder, *options, "--videos", "1", "--zoom", "3") == 0
    return folder


@pytest.fixture(scope="module")
def numbers(whole: Path) -> dict[str, Any]:
    return json.loads((whole / "fake-comparison" / "comparison.json").read_text())


# numbers


def test_the_keys_are_those_that_are_documented(numbers: dict[str, Any]) -> None:
    documented = dict(re.findall(r"^    (\w+) {2,}(.*(?:\n {16,}.*)*)", tables.__doc__ or "", re.MULTILINE))
    assert list(documented) == list(numbers)
    assert numbers["schema_version"] == 1
    for key in ("totals", "prompts", "videos"):
        assert set(numbers[key][0]) <= set(re.findall(r"\w+", documented[key])), key


def test_totals_are_means_of_the_videos(numbers: dict[str, Any]) -> None:
    labels = ["never", "interval-2", "interval-3", "every"]
    assert [total["policy"] for total in numbers["totals"]] == labels
    assert [(one["prompt"], one["seed"]) for one in numbers["videos"]] == [(p, s) for p in PROMPTS for s in (0, 1)]
    for index, total in enumerate(numbers["totals"]):
        mine = [one["rows"][index] for one in numbers["videos"]]
        assert total["videos"] == 4
        assert total["same"] == (4 if total["policy"] in ("never", "every") else 0)
        assert ("psnr_db" in total["metrics"]) == (total["same"] == 0)
        assert "flops" not in total["metrics"]  # which this bundle does not count
        for name in ("time_ratio", "ssim", "lpips", "latent_l2"):
            assert total["metrics"][name]["mean"] == pytest.approx(np.mean([row[name] for row in mine])), name
            assert total["metrics"][name]["low"] <= total["metrics"][name]["high"]
        assert total["metrics"]["adherence"]["mean"] == pytest.approx(0.5)
        for prompt in numbers["prompts"]:
            (part,) = [one for one in prompt["totals"] if one["policy"] == total["policy"]]
            assert part["metrics"]["adherence"] == {
                "mean": 0.75 if prompt["prompt"] == "a boat" else 0.25,
                "low": None,
                "high": None,
            }


def test_csv_has_a_line_a_video_and_policy(whole: Path, numbers: dict[str, Any]) -> None:
    with (whole / "fake-comparison" / "comparison.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 * 4
    assert set(lines[0]) == {"prompt", "seed", "adherence_boat", "adherence_half", *(f.name for f in fields(Row))}
    rows = [(one["prompt"], one["seed"], row) for one in numbers["videos"] for row in one["rows"]]
    for line, (prompt, seed, row) in zip(lines, rows, strict=True):
        assert (line["prompt"], line["seed"], line["policy"]) == (prompt, str(seed), row["policy"])
        assert line["psnr_db"] == ("" if row["psnr_db"] is None else repr(row["psnr_db"]))
        assert float(line["lpips"]) == row["lpips"]
        assert float(line["adherence"]) == (0.75 if prompt == "a boat" else 0.25)


def test_the_table(whole: Path) -> None:
    title, columns, *rows = (whole / "table.txt").read_text().splitlines()
    assert "4 videos a policy" in title
    for column in ("computed calls", "time ratio", "PSNR, dB", "SSIM", "LPIPS", "latents, rel. L2", "adherence, %"):
        assert column in columns
    assert "FLOP" not in columns
    shown = {row.split()[0]: row for row in rows[:4]}
    assert list(shown) == ["never", "interval-2", "interval-3", "every"]
    assert "6.0 ± 0.0" in shown["never"]
    assert "same" in shown["never"]
    assert "same" in shown["every"]
    assert "50.0 ± 25.0" in shown["interval-2"]
    assert [row.rpartition("/")[2] for row in rows[4:]] == [*cli.OUTPUTS, "001.mp4"]


def row(policy: str, **changes: Any) -> Row:
    usual = {"calls": 4, "computed": 4, "passes": 8, "flops": 3 * 10**12, "wall_ms": 10.0, "time_ratio": 1.0}
    quality = {"same": False, "psnr_db": 30.0, "ssim": 0.9, "lpips": None, "latent_l2": 0.1}
    return Row(policy, **{**usual, **quality, **changes})


def text(some: Sequence[Total]) -> str:
    console = Console(width=140)
    with console.capture() as captured:
        console.print(tables.table(some))
    return captured.get()


def test_operations_and_a_single_prompt() -> None:
    shown = text(totals([Finished("a boat", 0, (row("never"), row("fast", flops=10**12, time_ratio=3.14)))]))
    assert "TFLOPs" in shown
    assert "1.00 ± -" in shown
    assert "3.14 ± -" in shown
    assert "30.0 ± -" in shown
    assert "LPIPS" not in shown
    assert "adherence" not in shown


def test_psnr_is_the_mean_of_what_differs() -> None:
    some = [
        Finished("a boat", 0, (row("fast", same=True, psnr_db=None),)),
        Finished("a bird", 0, (row("fast", psnr_db=40.0),)),
        Finished("a bear", 0, (row("fast", psnr_db=20.0),)),
    ]
    (total,) = totals(some)
    assert (total.videos, total.same) == (3, 1)
    assert total.metrics["psnr_db"] == Estimate(30.0, 20.0, 40.0)


# pictures


def test_side_by_side(whole: Path) -> None:
    folder = whole / "fake-comparison"
    assert [path.name for path in (folder / "videos").iterdir()] == ["001.mp4"]
    with av.open(folder / "videos" / "001.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    width = 4 * (3 * 8 + GAP) - GAP
    assert len(frames) == 4
    assert frames[0].shape[1] == width + width % 2
    assert frames[0].shape[0] > 3 * 7


def test_panels_hold_the_pixels_and_wrap() -> None:
    random = np.random.default_rng(0)
    labels = ["never", "interval-2", "a-policy-with-a-name-that-is-much-too-long-for-its-panel", "d", "e"]
    frames = {label: random.integers(0, 255, (2, 7, 9, 3), np.uint8) for label in labels}
    rows = [row(label, same=label == "d", psnr_db=None if label == "d" else 30.0) for label in labels]
    made = side_by_side(frames, rows, 3)
    assert made.shape[1] % 2 == made.shape[2] % 2 == 0
    strip = (made.shape[1] - made.shape[1] % 2 - GAP) // 2 - 3 * 7
    assert strip > 20
    for index, label in enumerate(labels):
        top, left = (index // 4) * (strip + 21 + GAP), (index % 4) * (27 + GAP)
        panel = made[:, top : top + strip + 21, left : left + 27]
        np.testing.assert_array_equal(panel[:, strip::3, ::3], frames[label])
        assert panel[:, :strip].max() > 150  # letters


def test_the_plot_is_a_picture_of_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    picture = (whole / "fake-comparison" / "frontier.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    found = totals([Finished("a", 0, (row("never"), row("x", time_ratio=2.0), row("y", same=True, psnr_db=None)))])
    for name in ("a.png", "b.png"):
        plot_frontier(tmp_path / name, found, {"x": "x", "y": "y"}, "one prompt, $no math_")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    # no policy left to draw
    plot_frontier(tmp_path / "c.png", [one for one in found if one.policy != "x"], {"y": "y"}, "nothing")
    assert (tmp_path / "c.png").stat().st_size


def test_methods() -> None:
    fast = PRESETS["adacache-fast"].model_dump(mode="json")
    assert kind_of(fast) == "adacache"
    assert kind_of(PRESETS["adacache-fast-moreg"].model_dump(mode="json")) == "adacache + moreg"
    assert kind_of({"name": "warm-up", "calls": 3, "policy": {"name": "last", "of": fast}}) == "adacache"
    assert kind_of("Mine(every=3)") == "Mine(every=3)"


# adherence, and without pixels


@pytest.mark.parametrize(
    ("function", "message"),
    [("broken", "failed for the prompt 'a boat': KeyError('size')"), ("empty", "gave {} for the prompt 'a boat'")],
)
def test_a_score_that_is_none(tmp_path: Path, capsys: Capture, function: str, message: str) -> None:
    assert run(tmp_path, "--score", f"scoring_of_tests:{function}", "--videos", "0") == 1
    assert message in capsys.readouterr().err


def test_a_bundle_without_a_decoder(tmp_path: Path, capsys: Capture) -> None:
    space = fake_model.manifest().latent.model_copy(update={"decoder": "none"})
    assert run(tmp_path, latent=space) == 0
    shown = capsys.readouterr()
    assert "this bundle has no decoder, so no PSNR, SSIM and videos" in shown.err
    assert "PSNR" not in shown.out
    assert "latents, rel. L2" in shown.out
    made = tmp_path / "fake-comparison"
    assert not (made / "videos").exists()
    assert (made / "frontier.png").exists()
    for one in json.loads((made / "comparison.json").read_text())["videos"]:
        assert [(line["same"], line["psnr_db"], line["ssim"]) for line in one["rows"]] == [(None, None, None)] * 4
        assert one["rows"][1]["latent_l2"] > 0
    write_lpips(tmp_path / "lpips.onnx")
    assert run(tmp_path, "--lpips", "lpips.onnx", latent=space) == 1
    assert "--lpips needs pixels" in capsys.readouterr().err


def test_all_metrics_are_explained() -> None:
    """Every number of a row, but what a policy is called and whether pixels are the same."""
    assert len(METRICS) == len(fields(Row)) - len(("policy", "calls", "same"))


def test_a_missing_package_is_named_with_what_installs_it(tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--prompts", "p.txt", "--policies", "interval-2"]
    code = (
        "import sys; sys.modules['skimage'] = None\n"
        f"from adacache_tune.commands.compare import main; sys.exit(main({arguments!r}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        'adacache-compare: skimage is not installed and is needed here: pip install "adacache-export[compare]"'
    ]
