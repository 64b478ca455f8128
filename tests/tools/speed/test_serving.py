"""The measurement of a server runs from its command line, on short jobs."""

import sys
from pathlib import Path

import pytest

from tools.speed import serving

pytestmark = pytest.mark.slow  # the demo model is exported


def test_a_round_and_the_table(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = {kind: {"prompt": "a red circle moves left fast", "frames": 4, "steps": 2} for kind in ("long", "short")}
    monkeypatch.setattr(serving, "MIX", tuple(jobs.items()))
    monkeypatch.setattr(serving, "IN_FLIGHT", (1, 4))
    words = [str(demo_bundle), "--rounds", "1", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["serving", *words])
    serving.main()
    made = (tmp_path / "serving.md").read_text()
    assert "| | one after another | 4 in flight, ratio |" in made
    assert "| jobs per second |" in made
    assert "status calls a second" in made
    assert made.endswith(capsys.readouterr().out)
