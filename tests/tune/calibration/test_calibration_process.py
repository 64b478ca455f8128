"""The process of a calibration, on real runs that are made up."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.errors import InputError
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policy import Policy
from adacache_runtime.request import Request
from adacache_tune.calibration import process
from adacache_tune.calibration.baseline import better, intervals_around
from adacache_tune.calibration.forecast import Forecaster
from adacache_tune.calibration.goal import Goal
from adacache_tune.calibration.process import Task, calibrate
from adacache_tune.calibration.trials import Trial
from adacache_tune.comparison.statistics import Estimate
from tests.helpers.policies.calibration_records import wandering

CONFIRMING = 3  # number of this phase of real runs, where forecasts hold in the others
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
        polynomials=(),
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
    """Real runs that differ from the forecast by so many dB; ``computed`` calls where not those of the policy. Reused
    calls take no time.
    """
    records, runs = [wandering(12, seed) for seed in range(4)], []

    def run_trials(_pipeline: object, requests: Sequence[Request], policies: Mapping[str, Any], *_: object) -> Any:
        runs.append(tuple(policies))
        trials = {}
        for label, policy in policies.items():
            calls, quality_db = Forecaster(records).of(policy)
            quality = Estimate(quality_db + off_db(label, policy))
            calls = computed.get(label, calls)
            trials[label] = Trial(quality, None, 12 / max(calls, 1e-9), calls, 12, 0.0, len(requests))
        return trials

    monkeypatch.setattr(process, "_records", lambda _: records)
    monkeypatch.setattr(process, "run_trials", run_trials)
    return runs


def test_a_forecast_that_is_off_by_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intervals tell by how much; what is found then needs no other search."""
    runs, said = made_up(monkeypatch, lambda _label, _policy: 7.0), list[str]()
    best, *_ = calibrate(task(Goal(quality_db=25.0), ["listed", "interval"], 2, said)).policies
    pilots, tried, confirmed = runs
    assert pilots == ("interval-2", "interval-3")
    assert set(tried) == {"listed", "interval"}
    assert {"listed", "interval"} == {label for label in confirmed if not label.startswith("interval-")}
    assert best.found.method == "listed"
    assert best.found.quality_db == pytest.approx(best.trial.quality_db.mean)
    assert best.found.quality_db >= 24.9
    assert said[0].startswith("listed: ")


def test_a_method_whose_forecast_is_off_is_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals do as forecast, and lists 4 dB worse: the second search asks for more."""
    runs = made_up(monkeypatch, lambda label, _policy: -4.0 if label == "listed" else 0.0)
    best, *_ = calibrate(task(Goal(quality_db=20.0), ["interval", "listed"], 2, [])).policies
    assert runs[1:3] == [("interval", "listed"), ("listed",)]
    listed = next(one for one in [best, *_] if one.found.method == "listed")
    assert listed.trial.quality_db.mean >= 19.9
    assert listed.found.quality_db == pytest.approx(listed.trial.quality_db.mean)


def test_what_keeps_the_goal_comes_before_what_misses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where so few calls would make up for the missing dB."""
    runs: Runs = made_up(
        monkeypatch, lambda label, _: -5.0 if label == "listed" and len(runs) == CONFIRMING else 0.0, {"listed": -9000}
    )
    best, other = calibrate(task(Goal(quality_db=20.0), ["interval", "listed"], 2, [])).policies
    assert (best.found.method, other.found.method) == ("interval", "listed")
    assert other.score < best.score


def test_a_method_may_take_what_a_simpler_one_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds that were searched do much worse than forecast, a published codebook that was scaled does not."""
    scaled = []

    def off_db(label: str, policy: Policy[Any]) -> float:
        if label == "adacache-scaled":
            scaled.append(policy)
        return -30.0 if label == "adacache" and policy not in scaled else 0.0

    made_up(monkeypatch, off_db)
    found = {
        one.found.method: one
        for one in calibrate(task(Goal(quality_db=20.0), ["adacache", "adacache-scaled"], 2, [])).policies
    }
    assert found["adacache"].found.policy == found["adacache-scaled"].found.policy


def test_what_a_fixed_interval_does_better_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here lists turn out to be much worse on held-out prompts."""
    runs: Runs = made_up(monkeypatch, lambda label, _: -9.0 if label == "listed" and len(runs) == CONFIRMING else 0.0)
    said = list[str]()
    found = calibrate(task(Goal(quality_db=20.0), ["listed", "adacache-scaled"], 2, said))
    assert [one.found.method for one in found.policies] == ["adacache-scaled"]
    (one,) = found.policies
    assert found.intervals.keys() == set(runs[-1]) - {"listed", "adacache-scaled"}
    assert better(one.trial, found.intervals) is None
    assert said[-1].startswith("without listed: ")
    assert " times the speed, where interval-" in said[-1]


def test_a_fixed_interval_does_better_than_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where lists are worse, but near enough to the goal; the interval itself may be chosen."""

    def off_db(label: str, _: Policy[Any]) -> float:
        return 10.0 if label.startswith("interval-") and len(runs) == CONFIRMING else 0.0

    runs: Runs = made_up(monkeypatch, off_db)
    message = "a fixed interval is faster and does better than each of listed; add interval or others to --methods"
    with pytest.raises(InputError, match=message):
        calibrate(task(Goal(quality_db=20.0), ["listed"], 1, []))
    runs.clear()
    found = calibrate(task(Goal(quality_db=20.0), ["listed", "interval"], 2, []))
    assert [one.found.method for one in found.policies] == ["interval"]


def test_intervals_around_numbers_of_calls() -> None:
    """In 12 calls, intervals 2 to 6 compute 7, 5, 4, 4 and 3; intervals 11 and 12 compute 2."""
    record = wandering(12, 0)
    for computed, expected in (
        ([7.0], [2]),
        ([5.2], [2, 3]),
        ([11.0], [2]),
        ([12.0], [2]),
        ([4.0, 3.5], [4, 5, 6]),
        ([2.0], [11]),
        ([1.0], [11, 12]),
        ([], []),
    ):
        found = intervals_around(computed, record)
        assert found == {f"interval-{every}": FixedInterval(every=every) for every in expected}
    assert intervals_around([2.0], wandering(3, 0)) == {"interval-2": FixedInterval(every=2)}


def test_an_interval_that_is_better() -> None:
    def trial(speed_up: float, quality_db: float) -> Trial:
        return Trial(Estimate(quality_db), None, speed_up, 1.0, 12, 0.0, 2)

    intervals = {"slow": trial(2.0, 40.0), "fast": trial(4.0, 30.0), "middle": trial(3.0, 34.0)}
    for speed_up, quality_db, expected in (
        (1.5, 39.0, "slow"),
        (2.0, 40.0, None),  # the same is no worse
        (2.1, 35.0, None),  # between two of them, below the line
        (2.1, 33.0, "middle"),
        (3.0, 29.0, "middle"),
        (4.1, 1.0, None),
    ):
        assert better(trial(speed_up, quality_db), intervals) == expected
    assert better(trial(1.0, 1.0), {}) is None
