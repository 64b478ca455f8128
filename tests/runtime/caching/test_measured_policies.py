"""TeaCache, FBCache and EasyCache against straight loops over the published formulas."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from adacache_engines.errors import PolicyError
from adacache_runtime.caching.policies.measured.easycache import EasyCache
from adacache_runtime.caching.policies.measured.fbcache import FBCache
from adacache_runtime.caching.policies.measured.teacache import TeaCache
from adacache_runtime.caching.policy import (
    BLOCK_INPUT,
    FIRST,
    LATENTS,
    VELOCITY,
    Context,
    Measure,
    Measurement,
    Needs,
    Policy,
    Run,
)
from adacache_runtime.caching.simulate import Unchanged, simulate
from tests.helpers.originals.teacache_coefficients import PUBLISHED
from tests.helpers.policies.policy_runs import changed, places

FIRST_AND_REST = ("spatial.00", "temporal.00 to temporal.01")
NAN = math.nan

Array = NDArray[np.float64]
Units = tuple[float, ...]


@dataclass(frozen=True)
class Tensors(Unchanged):
    """Answers what a policy measures from tensors (calls, units, values) by site."""

    sites: Mapping[str, Array]

    def measurement(self, measure: Measure, earlier: int, call: int) -> Measurement:
        tensors = self.sites[measure.site]
        old, new = tensors[earlier - 1], tensors[call - 1]
        size = new if measure.site == VELOCITY else old
        change, magnitude = (np.abs(values).sum(-1).tolist() for values in (new - old, size))
        return changed(measure.site, tuple(change), tuple(magnitude))


@st.composite
def walks(draw: st.DrawFn, units: int | None = None) -> Array:
    """A tensor that moves on from call to call, now and then to where all is zero."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 15)), units or draw(st.integers(1, 3)))
    steps = random.standard_normal((*shape, 4)) * draw(st.sampled_from((0.003, 0.02, 0.1, 0.5)))
    there = random.random((*shape, 1)) >= draw(st.sampled_from((0.0, 0.0, 0.1)))
    moved: Array = (random.standard_normal((shape[1], 4)) + np.cumsum(steps, 0)) * there
    return moved


def run_of(tensors: Array, names: tuple[str, ...] = ("all",)) -> Run:
    calls, units, _ = tensors.shape
    return Run(calls, len(names), units, places(*names), tuple(1000.0 - call for call in range(calls)))


def computed(policy: Policy[Any], tensors: Mapping[str, Array], names: tuple[str, ...] = ("all",)) -> list[int]:
    """The calls that compute the last group."""
    run = run_of(next(iter(tensors.values())), names)
    decisions = simulate(policy, run, Tensors(tensors)).decisions
    return [call for call, compute in enumerate(decisions, 1) if compute[-1]]


def relative(new: Array, old: Array) -> Array:
    """Mean |new - old| over mean |old|, a unit each; NaN where there is nothing to relate it to."""
    size = np.abs(old).mean(-1)
    ratio: Array = np.abs(new - old).mean(-1) / np.where(size == 0, NAN, size)
    return ratio


def apart(values: Array, threshold: float) -> None:
    """Leaves out what two ways of rounding may decide differently."""
    assume(not np.isclose(values, threshold, rtol=1e-9, atol=1e-12).any())


# TeaCache


def teacache_calls(modulated: Array, coefficients: Sequence[float], threshold: float) -> list[int]:
    calls, total = [], np.zeros(modulated.shape[1])
    for index in range(len(modulated)):
        if index:
            total = total + np.poly1d(coefficients)(relative(modulated[index], modulated[index - 1]))
            apart(total, threshold)
        if index in (0, len(modulated) - 1) or not (total < threshold).all():
            calls.append(index + 1)
            total = np.zeros_like(total)
    return calls


@given(walks(), st.sampled_from(((1.0, 0.0), *PUBLISHED)), st.floats(0.001, 2))
def test_teacache_is_a_sum_of_polynomials(modulated: Array, coefficients: tuple[float, ...], threshold: float) -> None:
    policy = TeaCache(coefficients=coefficients, threshold=threshold)
    assert computed(policy, {BLOCK_INPUT: modulated}) == teacache_calls(modulated, coefficients, threshold)


@given(st.floats(0, 0.5), st.sampled_from(PUBLISHED))
def test_the_polynomial(distance: float, coefficients: tuple[float, ...]) -> None:
    a, b, c, d, e = coefficients
    expected = a * distance**4 + b * distance**3 + c * distance**2 + d * distance + e
    assert TeaCache(coefficients=coefficients, threshold=1).rescaled(distance) == pytest.approx(expected, abs=1e-9)


# FBCache


def fbcache_calls(first: Array, threshold: float) -> list[int]:
    calls: list[int] = []
    for index, residual in enumerate(first):
        distance = relative(residual, first[calls[-1] - 1]) if calls else np.array([NAN])
        apart(distance, threshold)
        if not (distance < threshold).all():
            calls.append(index + 1)
    return calls


@given(walks(), st.floats(0.001, 1))
def test_fbcache_compares_with_the_last_computed_call(first: Array, threshold: float) -> None:
    policy = FBCache(threshold=threshold)
    assert computed(policy, {FIRST: first}, FIRST_AND_REST) == fbcache_calls(first, threshold)
    decisions = simulate(policy, run_of(first, FIRST_AND_REST), Tensors({FIRST: first})).decisions
    assert all(compute[0] for compute in decisions)


@pytest.mark.parametrize(
    "names",
    [
        ("spatial.00 to temporal.01",),
        ("spatial.00",),
        ("embed to final",),
        ("spatial.00.attn", "spatial.00.cross", "temporal.00.attn"),
        (),
    ],
)
def test_fbcache_needs_the_first_block_by_itself(names: tuple[str, ...]) -> None:
    with pytest.raises(PolicyError, match="--granularity first, or block"):
        FBCache(threshold=0.1).start(Run(5, max(1, len(names)), 1, places(*names), (0.0,) * 5))


@pytest.mark.parametrize(
    "names", [FIRST_AND_REST, ("spatial.00", "temporal.00"), ("spatial.00.attn to spatial.00.mlp", "temporal.00.attn")]
)
def test_fbcache_takes_any_split_after_the_first_block(names: tuple[str, ...]) -> None:
    FBCache(threshold=0.1).start(Run(5, 2, 1, places(*names), (0.0,) * 5))


# EasyCache


def easycache_run(latents: Array, full: Array, threshold: float) -> tuple[list[int], Array]:
    """The computed calls and all velocities; ``full`` are those that the model would give."""
    calls, given = [], np.array(full)
    factor = total = np.zeros(latents.shape[1])
    kept = full[0] - latents[0]
    for index, x in enumerate(latents):
        dx = np.abs(x - latents[index - 1]).mean(-1)
        if index > 1:
            size = np.abs(given[index - 1]).mean(-1)
            total = total + factor * (dx / np.where(size == 0, NAN, size))
            apart(total, threshold)
        if index < 2 or index == len(latents) - 1 or not (total < threshold).all():
            calls.append(index + 1)
            total = np.zeros_like(total)
            kept = full[index] - x
            factor = np.abs(full[index] - given[index - 1]).mean(-1) / np.where(dx == 0, NAN, dx)
        given[index] = x + kept
    return calls, given


@given(st.integers(1, 3).flatmap(lambda units: st.tuples(walks(units), walks(units))), st.floats(0.001, 2))
def test_easycache_relates_output_to_input(pair: tuple[Array, Array], threshold: float) -> None:
    latents, full = (walk[: min(map(len, pair))] for walk in pair)
    calls, velocities = easycache_run(latents, full, threshold)
    assert computed(EasyCache(threshold=threshold), {LATENTS: latents, VELOCITY: velocities}) == calls


# all that measure

TEACACHE = TeaCache(coefficients=(1, 0), threshold=0.1)
MEASURING: dict[str, tuple[Policy[Any], tuple[str, ...]]] = {
    "teacache": (TEACACHE, ("all",)),
    "fbcache": (FBCache(threshold=0.1), FIRST_AND_REST),
    "easycache": (EasyCache(threshold=0.1), ("all",)),
}
Show = Callable[[int, str], Measurement]


def steady(change: Units, magnitude: Units) -> Show:
    return lambda _call, site: changed(site, change, magnitude)


@dataclass(frozen=True)
class Shown(Unchanged):
    """Answers by call and site."""

    show: Show

    def measurement(self, measure: Measure, earlier: int, call: int) -> Measurement:
        return self.show(call, measure.site)


def whole(name: str, show: Show, units: int = 1, calls: int = 9) -> list[int]:
    """The calls that a policy computes in full."""
    policy, names = MEASURING[name]
    run = Run(calls, len(names), units, places(*names), tuple(map(float, range(calls))))
    decisions = simulate(policy, run, Shown(show)).decisions
    return [call for call, compute in enumerate(decisions, 1) if all(compute)]


ALL = list(range(1, 10))
STILL = {"teacache": [1, 9], "fbcache": [1], "easycache": [1, 2, 9]}


@pytest.mark.parametrize("name", MEASURING)
def test_what_does_not_change_is_reused(name: str) -> None:
    show = steady((0.0,), (1.0,))
    moving = show if name != "easycache" else lambda _call, site: changed(site, (float(site == LATENTS),), (1.0,))
    assert whole(name, moving) == STILL[name]


@pytest.mark.parametrize("name", MEASURING)
@pytest.mark.parametrize(
    ("change", "magnitude"),
    [(NAN, 1.0), (1e-9, NAN), (NAN, NAN), (0.0, 0.0), (1.0, 0.0), (math.inf, 1.0), (math.inf, math.inf)],
)
def test_what_is_no_number_is_far(name: str, change: float, magnitude: float) -> None:
    """And so it is for all, if it is one prompt's only."""
    assert whole(name, steady((change,), (magnitude,))) == ALL
    assert whole(name, steady((1e-9, change), (1.0, magnitude)), units=2) == ALL
    assert whole(name, steady((change, 1e-9), (magnitude, 1.0)), units=2) == ALL


@pytest.mark.parametrize("name", MEASURING)
def test_one_number_that_is_none_costs_one_call(name: str) -> None:
    """A call at which nothing can be told is computed, and what comes after it is decided as usual."""

    def show(call: int, site: str) -> Measurement:
        broken = call == 5 and site != VELOCITY
        still = 1e-9 if site != LATENTS else 1.0
        return changed(site, (NAN if broken else still,), (1.0,))

    expected = {"teacache": [1, 5, 9], "fbcache": [1, 5], "easycache": [1, 2, 5, 6, 9]}  # easycache: K of call 5 is NaN
    assert whole(name, show) == expected[name]


@pytest.mark.parametrize("name", MEASURING)
@given(changes=st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=9, max_size=9))
def test_the_most_cautious_prompt_decides(name: str, changes: list[list[float]]) -> None:
    """Equal prompts decide as one; and until the first that one of them asks for, all are as the most cautious."""

    def of(units: Sequence[int]) -> Show:
        return lambda call, site: changed(
            site, tuple(changes[call - 1][unit] if site != LATENTS else 1.0 for unit in units), (1.0,) * len(units)
        )

    alone = [whole(name, of([unit])) for unit in range(3)]
    assert whole(name, of([0, 0]), units=2) == alone[0]
    together = whole(name, of([0, 1, 2]), units=3)
    free = 2 if name == "easycache" else 1
    assert together[free : free + 1] == sorted({call for calls in alone for call in calls})[free : free + 1]


@pytest.mark.parametrize("name", MEASURING)
@given(seed=st.integers(0, 2**32 - 1))
def test_states_are_pure(name: str, seed: int) -> None:
    """Same state and numbers, same answer; and no state changes in place."""
    policy, names = MEASURING[name]
    run, random = Run(9, len(names), 2, places(*names), (0.0,) * 9), np.random.default_rng(seed)
    state: Any = policy.start(run)
    assert repr(state) == repr(policy.start(run))
    early, late = ([m for m in policy.needs.measures if m.early == before] for before in (True, False))

    def twice(ask: Callable[[Any], tuple[Any, Any]], state: Any) -> tuple[Any, Any]:
        before = repr(deepcopy(state))
        (answer, after), (same, again) = ask(state), ask(state)
        assert (repr(answer), repr(after)) == (repr(same), repr(again))
        assert repr(state) == before
        return answer, after

    for call in range(1, 10):
        context = Context(run, call, 0.0, forced=bool(random.integers(4) == 0))
        for measures in (early, [None], late):
            for measure in measures:
                if measure is None:
                    decision, state = twice(lambda state: policy.decide(state, context), state)  # noqa: B023
                    assert all(decision.compute) or not context.forced
                elif call > 1:
                    change, magnitude = (tuple(random.random(2).tolist()) for _ in range(2))
                    shown = [changed(measure.site, change, magnitude)]
                    _, state = twice(lambda state: policy.observe(state, context, shown), state)  # noqa: B023


def test_what_they_need() -> None:
    needs = {name: policy.needs for name, (policy, _) in MEASURING.items()}
    assert needs["teacache"] == Needs(measures=(Measure(BLOCK_INPUT, "all", "measured"),))
    assert needs["fbcache"] == Needs(measures=(Measure(FIRST, "all", "computed"),), granularity="first")
    output = Measure(VELOCITY, "all", "measured", ("change", "new_magnitude"))
    both = (Measure(LATENTS, "all", "measured"), output)
    assert needs["easycache"] == Needs(measures=both, granularity="model")
