"""The phases that run scenarios, on the faked runtime."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.gpu.fake_cuda import FakeCuda
from tools.gpu.running.results import BROKEN_OFF, Report, read_part, write_json
from tools.gpu.scenarios import phase


@pytest.fixture
def scenarios(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Made-up scenarios in place of the real ones; the list gets the names of those that run."""
    ran: list[str] = []

    def scenario(name: str) -> Any:
        def run(_api: Any) -> None:
            ran.append(name)
            if name == "bad":
                raise AssertionError("7 is not 8")

        return run

    monkeypatch.setattr(phase, "SCENARIOS", {name: scenario(name) for name in ("a", "bad", "c", "d")})
    return ran


def test_each_outcome_is_kept(scenarios: list[str], tmp_path: Path) -> None:
    report = Report(tmp_path / "it.part.json")
    phase.run({"without": ["d"]}, report, object())
    assert scenarios == ["a", "bad", "c"]
    kept = read_part(tmp_path, "it")
    assert {name: one["outcome"] for name, one in kept["told"]["scenarios"].items()} == {
        "a": "passed", "bad": "failed", "c": "passed",
    }  # fmt: skip
    assert kept["failures"] == [{"what": "bad", "why": "AssertionError: 7 is not 8"}]


def test_scenarios_behind_a_crash_are_run_and_the_one_that_crashed_is_not(scenarios: list[str], tmp_path: Path) -> None:
    done = {"a": {"outcome": "passed"}, "bad": {"outcome": phase.BEGUN}}
    record = {"phase": "scenarios", "status": BROKEN_OFF, "began": 1.0, "told": {"scenarios": done}}
    write_json(tmp_path / "scenarios.json", record)
    arguments = {"behind": "scenarios", "records": str(tmp_path)}
    phase.run(arguments, Report(tmp_path / "rest.part.json"), object())
    assert scenarios == ["c", "d"]


def test_those_that_failed_after_the_first_failure_are_run_again() -> None:
    outcomes = {"a": "passed", "b": "failed", "c": "failed", "d": "passed", "e": "failed"}
    record = {"told": {"scenarios": {name: {"outcome": outcome} for name, outcome in outcomes.items()}}}
    assert phase.settled(record) == {"a", "b", "d"}
    assert phase.settled({}) == set()


def test_the_first_scenario_uses_the_runtime_alone(tmp_path: Path) -> None:
    report = Report(tmp_path / "it.part.json")
    phase.run({"only": ["bindings_alone"]}, report, FakeCuda())
    assert report.told["scenarios"]["bindings_alone"]["outcome"] == "passed"
