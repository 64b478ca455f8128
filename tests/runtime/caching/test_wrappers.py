"""Wrappers around every kind of policy, in any order."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adacache_engines.errors import PolicyError
from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.scheduled.delta_dit import DeltaDiT
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.caching.policies.wrappers import Extrapolate, MaxReuses, WarmUp
from adacache_runtime.caching.policy import Context, Decision, Measurement, Policy, Run
from adacache_runtime.caching.simulate import simulate
from tests.helpers.policies.policy_kinds import CHANGES, KINDS, WRAPS, Numbers, Wrap, run_of, wrapped
from tests.helpers.policies.policy_runs import changed

ALIKE = [kind for kind in KINDS if kind not in ("pab", "tgate", "delta-dit")]  # that treat all groups as one


@dataclass(frozen=True)
class Told:
    """The policy inside, writing down what it is told."""

    policy: Policy[Any]
    decisions: list[tuple[bool, Decision]] = field(default_factory=list)

    @property
    def needs(self) -> Any:
        return self.policy.needs

    def start(self, run: Run) -> Any:
        return self.policy.start(run)

    def decide(self, state: Any, context: Any) -> tuple[Decision, Any]:
        decision, state = self.policy.decide(state, context)
        self.decisions.append((context.forced, decision))
        return decision, state

    def observe(self, state: Any, context: Any, measurements: Sequence[Measurement]) -> Any:
        return self.policy.observe(state, context, measurements)


def decided(policy: Policy[Any], kind: str, calls: int, changes: Sequence[float] | None = None) -> list[Decision]:
    """All decisions, as the outermost policy gives them."""
    outer = Told(policy)
    simulate(outer, run_of(kind, calls), Numbers(changes or [0.1] * calls))
    return [decision for _, decision in outer.decisions]


def streaks(decisions: Sequence[Decision], group: int) -> list[int]:
    """Lengths of the rows of calls that reuse a group."""
    computed = [decision.compute[group] for decision in decisions]
    return [len(list(row)) for now, row in itertools.groupby(computed) if not now]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(wraps=WRAPS, calls=st.integers(1, 20), changes=CHANGES)
def test_what_a_wrapper_says_holds_in_any_order(
    kind: str, wraps: list[Wrap], calls: int, changes: Sequence[float]
) -> None:
    policy, names = KINDS[kind]
    decisions = decided(wrapped(policy, wraps), kind, calls, changes)
    assert len(decisions) == calls
    assert all(decisions[0].compute)
    for name, number in wraps:
        if name == "warm-up":
            assert all(all(decision.compute) for decision in decisions[:number])
        elif name == "last-calls":
            assert all(all(decision.compute) for decision in decisions[-number:])
        else:
            longest = max((length for group in range(len(names)) for length in streaks(decisions, group)), default=0)
            assert longest <= number
    if kind in ALIKE:
        first = int(kind == "fbcache")  # whose first group is always computed
        assert all(len(set(decision.compute[first:])) == 1 for decision in decisions)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(wraps=WRAPS, calls=st.integers(1, 20), changes=CHANGES)
def test_extrapolation_changes_no_decision(kind: str, wraps: list[Wrap], calls: int, changes: Sequence[float]) -> None:
    """But where groups differ and there is a limit around it: it then takes all groups along."""
    plain = wrapped(KINDS[kind][0], wraps)
    for policy in (Extrapolate(policy=plain), wrapped(Extrapolate(policy=KINDS[kind][0]), wraps)):
        one, other = (decided(chosen, kind, calls, changes) for chosen in (plain, policy))
        for expected, decision in zip(one, other, strict=True):
            if kind in ALIKE or policy.name == "extrapolate":
                assert decision.compute == expected.compute


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(
    before=WRAPS,
    after=WRAPS,
    calls=st.integers(1, 20),
    changes=CHANGES,
    line=st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
)
def test_extrapolation_goes_on_as_a_line(
    kind: str, before: list[Wrap], after: list[Wrap], calls: int, changes: Sequence[float], line: tuple[float, float]
) -> None:
    """A residual r(k) = a + b k is met exactly, from its second computed call on, whatever made a call a computed one.

    Until then the first is reused as it is.
    """
    policy, names = KINDS[kind]
    chosen = wrapped(Extrapolate(policy=wrapped(policy, before)), after)
    offset, slope = line
    kept: list[list[float]] = [[] for _ in names]  # the newest first
    for call, decision in enumerate(decided(chosen, kind, calls, changes), 1):
        if not chosen.needs.weighted:
            assert decision.weights == ()
            continue
        for group, compute in enumerate(decision.compute):
            residuals = kept[group]
            if compute:
                residuals.insert(0, offset + slope * call)
            elif len(residuals) == 1:
                assert decision.weights[group] == (1.0, 0.0)
            else:
                value = sum(weight * r for weight, r in zip(decision.weights[group], residuals[:2], strict=True))
                assert value == pytest.approx(offset + slope * call, abs=1e-9)


# what the policy inside is told


@given(st.lists(st.booleans(), min_size=12, max_size=12))
def test_adacache_goes_on_after_calls_that_it_did_not_ask_for(forced: list[bool]) -> None:
    """Its rate counts from the last computed call, whoever asked for it."""
    policy, run = AdaCache(codebook=((1.0, 3),)), Run(12, 1, 1)
    state, computed, rate = policy.start(run), [], 1
    for call in range(1, 13):
        context = Context(run, call, 0.0, forced[call - 1])
        decision, state = policy.decide(state, context)
        due = not computed or call >= computed[-1] + rate
        assert decision.compute == (due or forced[call - 1] or call >= 11,)
        if decision.compute[0]:
            if computed:
                _, state = policy.observe(state, context, [changed("site", (0.1,), (1.0,))])
                rate = 3
            computed.append(call)


@pytest.mark.parametrize("kind", ["adacache", "teacache", "fbcache", "easycache"])
def test_a_policy_is_told_that_it_has_no_choice(kind: str) -> None:
    inner = Told(KINDS[kind][0])
    decided(MaxReuses(policy=WarmUp(policy=inner, calls=4), reuses=2), kind, 14, [1e-6] * 14)
    told = [call for call, (forced, _) in enumerate(inner.decisions, 1) if forced]
    assert told == [1, 2, 3, 4, 7, 10, 13]
    assert all(all(decision.compute) for forced, decision in inner.decisions if forced)


def test_each_group_has_its_own_limit() -> None:
    decisions = decided(MaxReuses(policy=KINDS["delta-dit"][0], reuses=1), "delta-dit", 6)
    assert decisions == decided(KINDS["delta-dit"][0], "delta-dit", 6)
    none = decided(MaxReuses(policy=KINDS["pab"][0], reuses=0), "pab", 6)
    assert all(all(decision.compute) for decision in none)
    cross = [decision.compute[1] for decision in decided(MaxReuses(policy=KINDS["pab"][0], reuses=2), "pab", 10)]
    assert cross == [True, False, False, True, False, True, False, False, True, False]


@pytest.mark.parametrize("policy", [Extrapolate(policy=NeverReuse()), DeltaDiT(interval=(0, 3), pairs=(0, 0), sign=-1)])
def test_weights_are_given_once(policy: Any) -> None:
    """Nothing to weigh is no harm; weights of weights are refused."""
    outer = Extrapolate(policy=WarmUp(policy=policy, calls=1))
    if policy.needs.weighted:
        with pytest.raises(PolicyError, match="weights of its own; leave out extrapolate"):
            outer.start(run_of("delta-dit", 5))
    else:
        assert all(decision.weights == () for decision in decided(outer, "delta-dit", 5))
    twice = Extrapolate(policy=Extrapolate(policy=FixedInterval()))
    with pytest.raises(PolicyError, match="weights of its own"):
        twice.start(run_of("interval", 5))
