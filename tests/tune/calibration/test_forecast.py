"""What schedules give by forecast, and what the searches make of it, on records that are made up."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import Preset
from adacache_engines.errors import InputError
from adacache_runtime.caching.policies.measured.teacache import TeaCache
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.listed import ListedCalls
from adacache_runtime.caching.policies.scheduled.magcache import MagCache
from adacache_runtime.caching.policies.wrappers import Extrapolate
from adacache_runtime.caching.policy import VELOCITY
from adacache_runtime.caching.presets import policy_from_description
from adacache_tune.calibration.forecast import BEST_DB, UNCANCELLED, Forecaster
from adacache_tune.calibration.goal import PENALTY, Goal
from adacache_tune.calibration.methods import EXTRAPOLATED, METHODS, Search, find, magcache, polynomials, teacache
from adacache_tune.calibration.records import RESIDUAL, Record, ratios
from adacache_tune.calibration.shortest import paths, refined
from tests.helpers.policies.calibration_records import MODULATED, toy, wandering

ALL = [*METHODS, *(method + EXTRAPOLATED for method in METHODS)]

# records by hand


def on_a_line(calls: int, gaps: int) -> Record:
    """Residuals r_k = base + k slope."""
    rng = np.random.default_rng(3)
    base, slope = rng.standard_normal((2, 2, 8))
    return toy(base + np.arange(calls)[:, None, None] * slope, gaps)


def errors_at_the_end(residuals: NDArray[Any], computed: Sequence[int], line: bool) -> Any:
    """Return the errors of the toy's latents, run call by call: of their sum, and of each reused call alone."""
    calls, kept, apart = len(residuals), [], []
    for call in range(1, calls + 1):
        true = residuals[call - 1].reshape(-1)
        if call in computed:
            kept = [(call, true), *kept[:1]]
            continue
        used = kept[0][1]
        if line and len(kept) > 1:
            (last, new), (before, old) = kept
            used = new + (new - old) * (call - last) / (last - before)
        apart.append((used - true) / calls)
    return np.sum(apart, axis=0), apart


# the forecast


@pytest.mark.parametrize("extrapolated", [False, True])
def test_the_forecast_is_the_toys_own_error(extrapolated: bool) -> None:
    rng = np.random.default_rng(5)
    residuals = rng.standard_normal((9, 2, 8))
    record = toy(residuals, 8)
    for computed in ([1, 4, 5, 9], [1], [1, 2, 3, 4, 5, 6, 7, 8], [1, 8]):
        together, apart = errors_at_the_end(residuals, computed, extrapolated)
        square = (together**2).mean() + UNCANCELLED * sum((one**2).mean() for one in apart)
        forecast = Forecaster([record], 7.0).quality_db([computed], extrapolated)
        assert forecast == pytest.approx(7 - 10 * math.log10(square), abs=1e-4)


def test_the_closed_form_of_a_constant_drift() -> None:
    """r_k = k d: reused g calls on, the error is g d; n segments of length L add up to n L (L - 1) / 2 of them."""
    calls, every = 12, 4
    record = toy(np.arange(calls)[:, None, None] * np.ones((1, 2, 8)), calls - 1)
    reused = [gap / calls for _ in range(3) for gap in range(1, every)]
    square = sum(reused) ** 2 + UNCANCELLED * sum(one**2 for one in reused)
    assert Forecaster([record]).quality_db([[1, 5, 9]], False) == pytest.approx(-10 * math.log10(square), abs=1e-4)


def test_a_line_is_continued_without_error() -> None:
    forecaster = Forecaster([on_a_line(9, 8)])
    assert forecaster.quality_db([[1, 2]], True) > 90
    assert forecaster.quality_db([[1, 4]], True) < 40  # with one residual there is no line yet: calls 2 and 3
    assert forecaster.quality_db([[1, 2]], False) < 40


def test_errors_that_cancel_count_for_a_quarter_only() -> None:
    residuals = np.zeros((3, 2, 8))
    residuals[1], residuals[2] = 1, -1
    each = 1 / 9
    forecast = Forecaster([toy(residuals, 2)]).quality_db([[1]], False)
    assert forecast == pytest.approx(-10 * math.log10(UNCANCELLED * 2 * each), abs=1e-4)


def test_beyond_the_recorded_gaps_errors_grow_on() -> None:
    near, far = Forecaster([on_a_line(9, 2)]), Forecaster([on_a_line(9, 8)])  # on a line they grow so, indeed
    for computed in ([1], [1, 3], [1, 6]):
        assert near.quality_db([computed], False) == pytest.approx(far.quality_db([computed], False), abs=0.01)


def test_beyond_the_recorded_gaps_a_line_is_not_trusted() -> None:
    """Where both errors are guesses they would cancel on any line, recorded or not."""
    near, far = Forecaster([on_a_line(9, 2)]), Forecaster([on_a_line(9, 8)])
    for computed in ([1, 3], [1, 6]):
        assert far.quality_db([computed], True) >= far.quality_db([computed], False)
        assert near.quality_db([computed], True) < near.quality_db([computed], False)


def test_what_reuses_nothing_is_best_whatever_the_offset() -> None:
    full = [[*range(1, 10)]]
    for offset_db in (-30.0, 0.0, 30.0):
        assert Forecaster([wandering(9, 0)], offset_db).quality_db(full, False) == BEST_DB
    assert Forecaster([on_a_line(9, 8)], 60.0).quality_db([[1, 2]], True) == BEST_DB


def test_means_over_records() -> None:
    records = [wandering(9, seed) for seed in range(3)]
    schedules = [[1, 5], [1, 3, 6], [1, 2, 4, 8]]
    alone = [Forecaster([one]).quality_db([each], False) for one, each in zip(records, schedules, strict=True)]
    together = Forecaster(records)
    assert together.quality_db(schedules, False) == pytest.approx(np.mean(alone))
    policy = ListedCalls(computed=(1, 4, 7))
    assert together.schedules(policy) == [[1, 4, 7]] * 3
    assert together.of(policy) == (3.0, together.quality_db([[1, 4, 7]] * 3, False))
    assert together.of(Extrapolate(policy=policy))[1] == together.quality_db([[1, 4, 7]] * 3, True)


# the goal


@given(st.floats(1.01, 8), st.floats(0, 2), st.integers(3, 60))
def test_the_budget_is_what_gives_the_speed(speed_up: float, reuse_share: float, calls: int) -> None:
    goal = Goal(speed_up=speed_up, reuse_share=reuse_share)
    budget = goal.budget(calls)
    assert 1 <= budget <= calls
    if budget > 1:
        assert goal.speed(budget, calls) == pytest.approx(speed_up)
    else:
        assert goal.speed(1, calls) <= speed_up * (1 + 1e-9)


def test_speed_by_hand() -> None:
    assert Goal().speed(10, 30) == 3
    assert Goal(reuse_share=0.1).speed(10, 30) == 30 / 12
    assert Goal(reuse_share=1).speed(1, 30) == 1


def test_scores_of_a_quality() -> None:
    """Schedules that keep the quality go by calls, and between equals by quality; others by what they lack."""
    goal = Goal(quality_db=30)
    assert goal.score(10, 31, 30) < goal.score(11, 35, 30)
    assert goal.score(10, 35, 30) < goal.score(10, 31, 30)
    assert goal.score(10, 29, 30) - goal.score(10, 28, 30) == pytest.approx(-PENALTY, abs=0.01)
    assert goal.score(20, 30, 30) < goal.score(10, 28, 30)


@given(st.floats(1.05, 6), st.floats(0, 0.6), st.integers(6, 60), st.floats(1, 98))
def test_no_quality_makes_up_for_a_missed_speed(
    speed_up: float, reuse_share: float, calls: int, quality_db: float
) -> None:
    goal = Goal(speed_up=speed_up, reuse_share=reuse_share)
    budget = goal.budget(calls)
    within = goal.score(budget, quality_db, calls)
    assert within < goal.score(calls, BEST_DB, calls)
    assert within < goal.score(min(budget + 1, calls), BEST_DB, calls)
    assert within < goal.score(budget, quality_db - 1, calls)
    assert goal.score(budget - 0.5, quality_db, calls) == within


def test_goals_in_words() -> None:
    assert (Goal(quality_db=32.5).text(), Goal(speed_up=2.0).text()) == ("PSNR 32.5 dB", "speed-up 2")


# paths


def cost(records: Sequence[Record], computed: Sequence[int]) -> float:
    """The sum over reused calls of their errors' root mean squares, the mean over records."""
    total = 0.0
    for call in range(1, len(records[0].timesteps) + 1):
        if call not in computed:
            last = max(one for one in computed if one < call)
            total += np.mean([np.sqrt((record.reuse_error(last, call) ** 2).mean()) for record in records])
    return total


@st.composite
def some_records(draw: st.DrawFn) -> list[Record]:
    """With any errors, whatever the gap."""
    calls, gaps = draw(st.integers(2, 7)), draw(st.integers(1, 3))
    seeds = draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=2))
    records = []
    for seed in seeds:
        made = wandering(calls, seed, min(gaps, calls - 1))
        rng = np.random.default_rng(seed)
        error = (rng.exponential(size=made.error.shape[:2])[:, :, None] * made.error).astype(np.float32)
        records.append(replace(made, error=error))
    return records


@settings(max_examples=40)
@given(some_records())
def test_paths_are_the_best_of_all_schedules(records: list[Record]) -> None:
    calls = len(records[0].timesteps)
    found = paths(Forecaster(records))
    assert list(found) == list(range(1, calls + 1))
    least = math.inf
    for count, schedule in found.items():
        every = [(1, *rest) for rest in itertools.combinations(range(2, calls + 1), count - 1)]
        assert schedule in every
        best = min(cost(records, each) for each in every)
        assert cost(records, schedule) == pytest.approx(best, rel=1e-9, abs=1e-12)
        assert best <= least * (1 + 1e-9)  # one more computed call never costs
        least = best


@settings(max_examples=40)
@given(some_records(), st.data())
def test_refining_never_makes_it_worse(records: list[Record], data: st.DataObject) -> None:
    calls = len(records[0].timesteps)
    forecaster, goal = Forecaster(records), Goal(quality_db=data.draw(st.floats(5, 60)))

    def score(schedule: tuple[int, ...]) -> float:
        return goal.score(len(schedule), forecaster.quality_db([schedule] * len(records), False), calls)

    rest = data.draw(st.sets(st.integers(2, calls)))
    schedule = (1, *sorted(rest))
    better = refined(schedule, calls, score)
    assert score(better) <= score(schedule)
    assert ListedCalls(computed=better, calls=calls).computed == better  # rising, from 1, within the calls
    assert better[-1] <= calls


def test_refining_moves_drops_and_adds() -> None:
    """Down a slope to what is wanted: the distance to a schedule."""
    for wanted in ((1, 4, 9), (1,), (1, 2, 3, 9)):

        def score(schedule: tuple[int, ...], wanted: tuple[int, ...] = wanted) -> float:
            return len({*schedule} ^ {*wanted})

        assert refined((1, 5, 8), 9, score, rounds=9) == wanted


# methods


def search(records: Sequence[Record], goal: Goal, extrapolated: bool = False) -> Search:
    return Search(Forecaster(records), goal, 0, extrapolated)


def test_teacaches_polynomial_is_the_least_squares_fit() -> None:
    records = [wandering(30, seed) for seed in range(2)]
    given_, *outputs = (
        np.concatenate([one.sites[name]["change"][0, 1:] / one.sites[name]["magnitude"][0, 1:] for one in records])
        for name in (MODULATED, RESIDUAL, VELOCITY)
    )
    found = teacache(search(records, Goal(speed_up=2.0)))
    degree = len(found.coefficients) - 1
    powers = np.stack([given_**power for power in range(degree, -1, -1)], axis=1)
    fits = [np.linalg.lstsq(powers, changed, rcond=None)[0].tolist() for changed in outputs]
    assert any(found.coefficients == pytest.approx(fit, rel=1e-6) for fit in fits)
    assert 1 <= degree <= 4


@pytest.mark.parametrize("distinct", [1, 2, 4])
def test_teacaches_polynomial_on_few_different_points(distinct: int) -> None:
    """A degree that they cannot tell is not fitted; numpy would warn."""
    record = wandering(9, 0)
    change = np.resize(np.arange(1.0, distinct + 1), (8, 9))
    sites = {**record.sites, MODULATED: {"change": change, "magnitude": np.ones((8, 9))}}
    found = teacache(search([replace(record, sites=sites)], Goal(speed_up=1.5)))
    assert isinstance(found, TeaCache)
    assert len(found.coefficients) <= distinct


def test_magcaches_ratios_are_measured() -> None:
    records = [wandering(12, seed) for seed in range(3)]
    found = magcache(search(records, Goal(speed_up=2.0)))
    assert isinstance(found, MagCache)
    assert found.ratios == ratios(records)
    assert len(found.ratios) == 12


def test_teacache_takes_a_published_polynomial_that_does_better() -> None:
    """One that reaches the threshold at the calls of the best list, of inputs whose change tells nothing otherwise."""
    goal, record = Goal(quality_db=25.0), wandering(12, 0)
    wanted = find("listed", Forecaster([record]), goal, 0)
    changes = np.random.default_rng(0).permutation(np.linspace(0.1, 1.9, 11))
    values = [1.0 if call in wanted.policy.computed else 0.01 for call in range(2, 13)]  # type: ignore[attr-defined]
    polynomial = tuple(np.polyfit(changes, values, 10).tolist())
    seen = {"change": np.full((11, 12), np.nan), "magnitude": np.ones((11, 12))}
    seen["change"][0, 1:] = changes
    records = [replace(record, sites={**record.sites, MODULATED: seen})]
    found = find("teacache", Forecaster(records), goal, 0, [(1.0,), polynomial])
    assert isinstance(found.policy, TeaCache)
    assert found.policy.coefficients == polynomial
    assert found.score < find("teacache", Forecaster(records), goal, 0).score


def test_polynomials_are_those_that_no_calibration_wrote() -> None:
    def preset(policy: Any, **measured: float) -> Preset:
        return Preset(policy=policy.model_dump(mode="json"), measured=measured)

    one, other, third = (TeaCache(coefficients=(number, 1.0), threshold=0.1) for number in (1.0, 2.0, 3.0))
    presets = {
        "slow": preset(one),
        "fast": preset(one.model_copy(update={"threshold": 0.2})),
        "calibrated": preset(other, psnr_db=30.0),
        "line": preset(Extrapolate(policy=third)),
        "interval": preset(FixedInterval(every=2)),
    }
    assert polynomials(presets) == [(1.0, 1.0)]


GOALS = [Goal(speed_up=1.5, reuse_share=0.1), Goal(quality_db=15.0)]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [wandering(12, seed) for seed in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("goal", GOALS, ids=Goal.text)
@pytest.mark.parametrize("method", ALL)
def test_methods_meet_a_goal(method: str, goal: Goal, records: list[Record]) -> None:
    found = find(method, Forecaster(records), goal, 30)
    assert found.method == method
    assert isinstance(found.policy, Extrapolate) == method.endswith(EXTRAPOLATED)
    assert (found.computed, found.quality_db) == Forecaster(records).of(found.policy)
    assert found.score == goal.score(found.computed, found.quality_db, 12)
    if goal.speed_up is not None:
        assert found.computed <= goal.budget(12)
        slowest = Forecaster(records).of(FixedInterval(every=12))[1]
        assert found.quality_db >= slowest
    else:
        assert goal.quality_db is not None
        assert found.quality_db >= goal.quality_db - 0.1  # a tenth of a dB costs a call
        assert found.computed < 12
    kept: Any = found.policy  # what is written into a bundle is the policy that was found
    assert policy_from_description(kept.model_dump(mode="json"), "here") == found.policy


@pytest.mark.slow
@pytest.mark.parametrize(("method", "quality_db"), [("adacache", 14.0), ("adacache-moreg", 14.0), ("teacache", 18.0)])
def test_random_changes_make_it_better_and_are_the_same_each_time(method: str, quality_db: float) -> None:
    records, goal = [wandering(20, seed) for seed in range(2)], Goal(quality_db=quality_db)
    without, one, other = (find(method, Forecaster(records), goal, tries) for tries in (0, 40, 40))
    assert one.score < without.score
    assert one == other


def test_the_shortest_path_is_the_best_method(records: list[Record]) -> None:
    """Any schedule that does not depend on the content is a list."""
    for goal in GOALS:
        best = find("listed", Forecaster(records), goal, 0).score
        for method in ("interval", "magcache"):
            assert best <= find(method, Forecaster(records), goal, 0).score


@pytest.mark.slow
@pytest.mark.parametrize("calls", [3, 4])
@pytest.mark.parametrize("method", ALL)
def test_methods_on_few_calls(method: str, calls: int) -> None:
    records = [wandering(calls, seed) for seed in range(2)]
    for goal in (Goal(speed_up=1.2), Goal(quality_db=10.0)):
        found = find(method, Forecaster(records), goal, 5)
        assert 1 <= found.computed <= calls
        assert found.policy.start(records[0].runs[0]) is not None


def test_a_site_that_was_not_recorded() -> None:
    record, policy = on_a_line(9, 8), TeaCache(coefficients=(1.0,), threshold=1)
    sites = {name: one for name, one in record.sites.items() if name != MODULATED}
    assert Forecaster([record]).of(policy)
    with pytest.raises(InputError, match="nothing was recorded at"):
        Forecaster([replace(record, sites=sites)]).of(policy)
