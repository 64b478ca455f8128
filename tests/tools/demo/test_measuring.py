"""The tools that measure policies on the demo model run from their command lines, on a few prompts."""

import json
import sys
from pathlib import Path

import pytest

from tools.demo import browser, fit, frontier, moreg, screenshot, table

pytestmark = pytest.mark.slow  # the demo model is exported


def arguments(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["tool", *map(str, words)])


def test_the_table_stands_between_its_marks(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme, numbers = tmp_path / "README.md", tmp_path / "numbers.json"
    readme.write_text(f"before\n{table.BEGIN}an old table\n{table.END}after\n")
    arguments(monkeypatch, "--bundle", demo_bundle, "--prompts", 1, "--json", numbers, "--readme", readme)
    table.main()
    rows = json.loads(numbers.read_text())
    assert [row["policy"] for row in rows] == list(table.ROWS)
    before, made, after = readme.read_text().partition(table.BEGIN)[0], *readme.read_text().split(table.END)
    assert (before, after) == ("before\n", "after\n")
    shown = made.partition(table.BEGIN)[2]
    assert shown in capsys.readouterr().out
    assert all(f"| {name} |" in shown for name in table.ROWS)
    assert "an old table" not in shown


def test_fitted_policies_are_written_for_the_demo(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goals = {
        name: fit.Goal(goal.fast, goal.slow, goal.computed, goal.window, prompts=1) for name, goal in fit.GOALS.items()
    }
    monkeypatch.setattr(fit, "GOALS", goals)
    monkeypatch.setattr(fit, "ROUNDS", 1)
    monkeypatch.setattr(fit, "POLICIES", tmp_path)
    arguments(monkeypatch, "--bundle", demo_bundle)
    fit.main()
    fitted = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert fitted.keys() == {"slow", "fast", "fast-moreg"}
    assert all(policy["name"] == "adacache" for policy in fitted.values())
    assert fitted["fast-moreg"]["codebook"] == fitted["fast"]["codebook"]
    assert fitted["fast-moreg"]["moreg"]["exponent"] == 1


def test_the_frontier_and_what_is_searched_on_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (
        ("TARGETS", (30,)),
        ("RECORDED", 2),
        ("HELD_OUT", 3),  # one of each speed
        ("PUBLISHED", {"fixed interval": ("interval-2",), "AdaCache": ("adacache-fast",)}),
        ("CALIBRATED", {"adacache-scaled": "AdaCache, published codebook scaled"}),
    ):
        monkeypatch.setattr(frontier, name, value)
    monkeypatch.setattr(moreg, "TRIES", 5)
    out, results = tmp_path / "frontier", tmp_path / "results"
    results.mkdir()
    arguments(monkeypatch, "--out", out, "--results", results)
    frontier.main()
    assert (results / "frontier.png").stat().st_size > 0
    rows = (results / "frontier.md").read_text().splitlines()
    assert any("| AdaCache | adacache-fast |" in row for row in rows)
    assert sum("published codebook scaled" in row for row in rows) <= 1  # where it beats the fixed intervals
    moreg.main()
    made = (results / "moreg.md").read_text()
    assert made.startswith("# Motion Regularization on the demo model")
    assert made.removeprefix(moreg.HEAD) in capsys.readouterr().out
    assert "| AdaCache + MoReg, as in the demo |" in made


@pytest.mark.skipif(browser.missing() is not None, reason="needs Chromium and its driver")
def test_the_screenshot(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "serve.png"
    arguments(monkeypatch, "--bundle", demo_bundle, "--out", picture)
    screenshot.main()
    assert picture.read_bytes().startswith(b"\x89PNG")
