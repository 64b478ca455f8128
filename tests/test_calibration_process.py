"""The process of a calibration, on real runs that are made up."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from test_forecast import wandering

from adacache_runtime.calibration import process
from adacache_runtime.calibration.forecast import Forecaster
from adacache_runtime.calibration.goal import Goal
from adacache_runtime.calibration.process import Task, calibrate
from adacache_runtime.calibration.trials import Trial
from adacache_runtime.comparison.statistics import Estimate
from adacache_runtime.policy import Policy
from adacache_runtime.request import Request

PROMPTS = ("a boat", "a bird", "a bear", "a bat", "a bee", "a bull")


def task(goal: Goal, methods: Sequence[str], confirmed: int, said: list[str]) -> Task:
    requests = [Request(prompts=(prompt,)) for prompt in PROMPTS]
    nothing: Any = None
    return Task(
        pipeline=nothing,
        recorded=requests[:4],
        held_out=requests[4:],
        goal=goal,
        methods=methods,
        confirmed=confirmed,
        gaps=4,
        tries=0,
        folder=Path(),
        asked={},
        progress=lambda _what, _steps: nullcontext(lambda: None),
        say=said.append,
    )


Runs = list[tuple[str, ...]]  # the labels of each phase of real runs


def made_up(
    monkeypatch: pytest.MonkeyPatch, off_db: Callable[[str, Policy[Any]], float], computed: Mapping[str, float] = {}
) -> Runs:
    """Real runs that differ from the forecast by so many dB; ``computed`` calls where not those of the policy."""
    records, runs = [wandering(12, seed) for seed in range(4)], []

    def run_trials(_pipeline: object, requests: Sequence[Request], policies: Mapping[str, Any], *_: object) -> Any:
        runs.append(tuple(policies))
        trials = {}
        for label, policy in policies.items():
            calls, quality_db = Forecaster(records).of(policy)
            quality = Estimate(quality_db + off_db(label, policy))
            trials[label] = Trial(quality, None, 1.0, computed.get(label, calls), 12, 0.0, len(requests))
        return trials

    monkeypatch.setattr(process, "_records", lambda _: records)
    monkeypatch.setattr(process, "run_trials", run_trials)
    return runs


def test_a_forecast_that_is_off_by_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intervals tell by how much; what is found then needs no other search."""
    runs, said = made_up(monkeypatch, lambda _label, _policy: 7.0), list[str]()
    best, *_ = calibrate(task(Goal(quality_db=25.0), ["listed", "interval"], 2, said))
    pilots, tried, confirmed = runs
    assert pilots == ("interval-2", "interval-3")
    assert set(tried) == set(confirmed) == {"listed", "interval"}
    assert best.found.method == "listed"
    assert best.found.quality_db == pytest.approx(best.trial.quality_db.mean)
    assert best.found.quality_db >= 24.9
    assert said[0].startswith("listed: ")


def test_a_method_whose_forecast_is_off_is_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals do as forecast, and lists 4 dB worse: the second search asks for more."""
    runs = made_up(monkeypatch, lambda label, _policy: -4.0 if label == "listed" else 0.0)
    best, *_ = calibrate(task(Goal(quality_db=20.0), ["interval", "listed"], 2, []))
    assert runs[1:3] == [("interval", "listed"), ("listed",)]
    listed = next(one for one in [best, *_] if one.found.method == "listed")
    assert listed.trial.quality_db.mean >= 19.9
    assert listed.found.quality_db == pytest.approx(listed.trial.quality_db.mean)


def test_what_keeps_the_goal_comes_before_what_misses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where so few calls would make up for the missing dB."""
    made_up(
        monkeypatch, lambda label, _policy: -300.0 if label == "listed" else 0.0, {"interval": 11.9, "listed": -9000}
    )
    best, other = calibrate(task(Goal(quality_db=20.0), ["interval", "listed"], 2, []))
    assert (best.found.method, other.found.method) == ("interval", "listed")
    assert other.score < best.score


def test_a_method_may_take_what_a_simpler_one_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds that were searched do much worse than forecast, a published codebook that was scaled does not."""
    made_up(monkeypatch, lambda label, _policy: -30.0 if label == "adacache" else 0.0)
    found = {
        one.found.method: one for one in calibrate(task(Goal(quality_db=20.0), ["adacache", "adacache-scaled"], 2, []))
    }
    assert found["adacache"].found.policy == found["adacache-scaled"].found.policy
    alone = calibrate(task(Goal(quality_db=-20.0), ["adacache"], 1, []))
    assert alone[0].found.policy != found["adacache"].found.policy
