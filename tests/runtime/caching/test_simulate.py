"""Schedules that are found without a model, and how far content can move them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adacache_runtime.caching.policies.measured.adacache import AdaCache, MoReg
from adacache_runtime.caching.policies.measured.easycache import EasyCache
from adacache_runtime.caching.policies.wrappers import Extrapolate, LastCalls, MaxReuses, WarmUp
from adacache_runtime.caching.policy import (
    CONDITIONAL_VELOCITY,
    FIRST,
    LATENTS,
    VELOCITY,
    Context,
    Decision,
    Measure,
    Measurement,
    Needs,
    Policy,
    Run,
)
from adacache_runtime.caching.presets import PRESETS
from adacache_runtime.caching.simulate import Unchanged, bounds, replay, simulate
from adacache_runtime.settled import settle
from tests.helpers.model.fake_model import fake_pipeline, functions, request
from tests.helpers.model.plain import Plain, plain
from tests.helpers.policies.policy_kinds import CHANGES, KINDS, WRAPS, Numbers, Wrap, run_of, wrapped
from tests.helpers.policies.policy_runs import codebooks, measured, places
from tests.helpers.policies.policy_runs import replay as driven
from tests.helpers.policies.scripted_policy import ADACACHE, EASYCACHE, FBCACHE, INTERVAL, TEACACHE


def falling(calls: int) -> list[float]:
    return [1000.0 - call for call in range(calls)]


def computed(decisions: list[tuple[bool, ...]]) -> list[int]:
    return [call for call, decision in enumerate(decisions, 1) if all(decision)]


def test_policies_that_measure_nothing() -> None:
    assert computed(replay(PRESETS["never"], falling(5))) == [1, 2, 3, 4, 5]
    assert computed(replay(PRESETS["interval-3"], falling(9))) == [1, 4, 7, 9]
    assert bounds(PRESETS["interval-3"]) == (PRESETS["interval-3"],) * 2


def test_adacache_at_its_largest_and_at_its_smallest_rate() -> None:
    fewest, most = (computed(replay(policy, falling(30))) for policy in bounds(PRESETS["adacache-fast-moreg"]))
    assert fewest == [1, 2, 8, 14, 20, 26, 29, 30]
    assert most == list(range(1, 31))
    assert computed(replay(bounds(PRESETS["adacache-fast-100"])[1], falling(10))) == [1, 2, 5, 8, 9, 10]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_that_measures_has_two_bounds(name: str) -> None:
    fewest, most = bounds(PRESETS[name])
    assert (fewest == most) == (PRESETS[name].needs.measures == ())


@given(codebooks(), st.integers(1, 40), st.data())
def test_no_content_leaves_the_bounds(codebook: list[tuple[float, int]], calls: int, data: st.DataObject) -> None:
    policy = AdaCache(codebook=tuple(codebook))
    fewest, most = (len(computed(replay(bound, falling(calls)))) for bound in bounds(policy))
    distances = data.draw(st.lists(st.floats(0, 10), min_size=calls, max_size=calls))
    seen, _ = driven(policy, calls, {call: [measured(value)] for call, value in enumerate(distances, 1)})
    assert fewest <= len(seen) <= most


@given(st.integers(1, 14), st.integers(1, 60))
def test_a_bound_is_the_policy_of_one_rate(rate: int, calls: int) -> None:
    fewest, most = bounds(AdaCache(codebook=((0.5, rate),)))
    assert fewest == most
    gaps = [later - earlier for earlier, later in itertools.pairwise(computed(replay(most, falling(calls))))]
    assert all(gap == rate for gap in gaps[1:-2])


@pytest.mark.parametrize("kind", [kind for kind, (policy, _) in KINDS.items() if policy.needs.measures])
@settings(max_examples=40)
@given(wraps=WRAPS, calls=st.integers(1, 20), changes=CHANGES)
def test_no_content_leaves_the_bounds_of_what_is_wrapped(
    kind: str, wraps: list[Wrap], calls: int, changes: Sequence[float]
) -> None:
    policy, run = wrapped(KINDS[kind][0], wraps), run_of(kind, calls)
    counts = [
        sum(all(compute) for compute in simulate(each, run, source).decisions)
        for each, source in zip((*bounds(policy), policy), (Unchanged(), Unchanged(), Numbers(changes)), strict=True)
    ]
    fewest, most, count = counts
    assert fewest <= count <= most


def test_the_fewest_and_the_most_calls_of_each_kind() -> None:
    """The fewest calls are those that are always computed, and the most are all."""
    ends = {"teacache": [1, 9], "fbcache": [1], "easycache": [1, 2, 9], "adacache": [1, 2, 8, 9]}
    policies: dict[str, Policy[Any]] = {**{kind: KINDS[kind][0] for kind in ends}, "adacache": PRESETS["adacache-fast"]}
    for kind, expected in ends.items():
        for policy, calls in ((policies[kind], expected), (WarmUp(policy=policies[kind], calls=1), expected)):
            fewest, most = (computed(replay(bound, falling(9), places(*KINDS[kind][1]))) for bound in bounds(policy))
            assert (fewest, most) == (calls, list(range(1, 10)))


@dataclass(frozen=True)
class Witness:
    """A policy that writes down what it is shown: by site and call, and whether that is before the decision."""

    policy: Policy[Any]
    shown: dict[tuple[str, int, bool], Measurement] = field(default_factory=dict)
    decided: set[int] = field(default_factory=set)

    @property
    def needs(self) -> Any:
        return self.policy.needs

    def start(self, run: Run) -> Any:
        return self.policy.start(run)

    def decide(self, state: Any, context: Context) -> tuple[Decision, Any]:
        self.decided.add(context.call)
        return self.policy.decide(state, context)

    def observe(self, state: Any, context: Context, measurements: Sequence[Measurement]) -> Any:
        early = context.call not in self.decided
        self.shown.update({(measurement.site, context.call, early): measurement for measurement in measurements})
        return self.policy.observe(state, context, measurements)


def test_a_policy_that_nobody_knows_has_no_bounds() -> None:
    unknown = Witness(EASYCACHE)
    assert bounds(unknown) is None
    assert bounds(WarmUp(policy=MaxReuses(policy=unknown, reuses=2), calls=2)) is None
    known = Witness(INTERVAL)
    assert bounds(known) == (known, known)


@dataclass
class Recorded(Unchanged):
    """Answers with what a generation showed, and checks that it is asked for the same two calls."""

    shown: Mapping[tuple[str, int, bool], Measurement]
    seen: Plain
    resolved: Sequence[Measure]
    asked: set[tuple[str, int, bool]] = field(default_factory=set)

    def measures(self, needs: Needs) -> Sequence[Measure]:
        return self.resolved

    def tensor(self, site: str, call: int) -> Any:
        whole = {
            FIRST: self.seen.first,
            LATENTS: self.seen.latents,
            VELOCITY: self.seen.velocities,
            CONDITIONAL_VELOCITY: self.seen.conditional,
        }
        if site in whole:
            return whole[site][call - 1]
        if site == "spatial.0.modulated":
            return self.seen.modulated[call - 1]
        kind, block, _ = site.split(".")
        return self.seen.shown[call - 1][f"{kind}.{int(block):02}"]

    def measurement(self, measure: Measure, earlier: int, call: int) -> Measurement:
        self.asked.add((measure.site, call, measure.early))
        given = self.shown[measure.site, call, measure.early]
        change = np.abs(self.tensor(measure.site, call) - self.tensor(measure.site, earlier)).sum(dtype=np.float64)
        assert math.isclose(sum(given["change"]), change, rel_tol=1e-4)
        return given


MOVING = AdaCache(
    codebook=[(0.05, 4), (0.3, 3), (1.0, 1)],
    probe=("temporal.0.attn", "spatial.1.attn"),
    moreg=MoReg(window=(2, 9), h0=0.6, exponent=1),
)
OF_CONDITIONAL = EasyCache(threshold=0.6, output="conditional_velocity")
DRIVEN: list[tuple[Policy[Any], str]] = [
    (INTERVAL, "stack"),
    (AdaCache(codebook=ADACACHE.codebook, probe=("temporal.0.attn",)), "block"),
    (MOVING, "model"),
    (TEACACHE, "stack"),
    (TEACACHE, "block"),
    (FBCACHE, "first"),
    (FBCACHE, "block"),
    (EASYCACHE, "model"),
    (EASYCACHE, "stack"),
    (OF_CONDITIONAL, "model"),
    (OF_CONDITIONAL, "stack"),
    (Extrapolate(policy=EasyCache(threshold=1.0)), "model"),
    (MaxReuses(policy=WarmUp(policy=TEACACHE, calls=3), reuses=1), "first"),
    (LastCalls(policy=Extrapolate(policy=FBCACHE), calls=3), "first"),
]


@pytest.mark.parametrize("scope", ["batch", "prompt"])
@pytest.mark.parametrize(("policy", "granularity"), DRIVEN)
def test_a_simulation_is_the_loop(tmp_path: Path, policy: Any, granularity: Any, scope: Any) -> None:
    """On what the loop measured it decides and observes the same, and it asks for nothing else."""
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    witness = Witness(policy)
    asked = request(policy=witness, granularity=granularity, scope=scope, steps=14)
    trace = pipeline.generate(asked).trace
    decisions = tuple(call.compute for call in trace.calls)
    seen = plain(pipeline, asked, decisions, granularity, policy.needs.weighted)
    settled = settle(pipeline.bundle, asked)
    source = Recorded(witness.shown, seen, settled.measures)
    simulated = simulate(policy, settled.segments[0].run, source)
    assert simulated.decisions == decisions
    assert simulated.observations == tuple(call.observation for call in trace.calls)
    assert source.asked == set(witness.shown)
    assert 2 < sum(map(all, decisions)) < 14
    assert simulated.computed() == trace.computed()
