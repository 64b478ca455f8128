"""Schedules that are known beforehand, MagCache's and lists of calls; and descriptions of policies that cannot be."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from adacache_engines.errors import InputError, PolicyError
from adacache_runtime.caching.policies.scheduled.listed import ListedCalls
from adacache_runtime.caching.policies.scheduled.magcache import MagCache
from adacache_runtime.caching.policy import Needs, Policy
from adacache_runtime.caching.presets import policy_from_description
from adacache_runtime.caching.simulate import replay
from tests.helpers.policies.policy_runs import places


def schedule(policy: Policy[Any], calls: int) -> list[int]:
    decisions = replay(policy, [float(call) for call in range(calls, 0, -1)], places("one", "other"))
    assert all(len(set(compute)) == 1 for compute in decisions)
    return [call for call, compute in enumerate(decisions, 1) if all(compute)]


# MagCache


def magcache_calls(ratios: Sequence[float], threshold: float, longest: int, warm_up: float) -> list[int]:
    """The published loop, call after call: accumulate, look, and skip or start anew."""
    calls, product, error, skipped = [], 1.0, 0.0, 0
    for index, ratio in enumerate(ratios):
        if index and index >= int(warm_up * len(ratios)):
            product *= ratio
            error += abs(1 - product)
            skipped += 1
            assume(abs(error - threshold) > 1e-9)
            if error <= threshold and skipped <= longest:
                continue
        product, error, skipped = 1.0, 0.0, 0
        calls.append(index + 1)
    return calls


RATIOS = st.lists(st.floats(0.5, 1.2), min_size=2, max_size=40)


@given(RATIOS, st.floats(0, 1), st.integers(0, 5), st.sampled_from((0.0, 0.2, 0.5, 1.0)))
def test_magcache_is_the_published_loop(ratios: list[float], threshold: float, longest: int, warm_up: float) -> None:
    policy = MagCache(ratios=ratios, threshold=threshold, max_reuses=longest, warm_up=warm_up)
    assert schedule(policy, len(ratios)) == magcache_calls(ratios, threshold, longest, warm_up)


def test_magcache_worked_out_by_hand() -> None:
    """Six of 30 calls to begin with. Then 0.98, 0.9604, 0.9412: errors 0.02, 0.0596, 0.1184, and 0.1960 is too far."""
    six = [1, 2, 3, 4, 5, 6]
    assert schedule(MagCache(ratios=(0.98,) * 30, max_reuses=9), 14) == [1, 2, 6, 10, 14]
    assert schedule(MagCache(ratios=(0.98,) * 30, max_reuses=9), 30) == [*six, 10, 14, 18, 22, 26, 30]
    assert schedule(MagCache(ratios=(0.98,) * 30, max_reuses=2), 30) == [*six, 9, 12, 15, 18, 21, 24, 27, 30]
    # below and above 1 do not make up for each other: 0.1, then |1 - 0.9 x 1.1| = 0.01 more
    assert schedule(MagCache(ratios=(1, 0.9, 1.1, 1, 1), warm_up=0, threshold=0.105), 5) == [1, 3]


def test_a_reuse_itself_may_be_at_the_threshold() -> None:
    assert schedule(MagCache(ratios=(1, 0.75, 1), warm_up=0, threshold=0.25), 3) == [1, 3]
    assert schedule(MagCache(ratios=(1, 0.75, 1), warm_up=0, threshold=0.24), 3) == [1, 2]


@given(RATIOS, st.integers(1, 60), st.floats(0, 0.5))
def test_ratios_of_another_number_of_calls_are_interpolated(ratios: list[float], calls: int, threshold: float) -> None:
    """Linearly, the first and the last being the ends of both."""
    between: list[float] = []
    for call in range(calls):
        place = call * (len(ratios) - 1) / max(1, calls - 1)
        left = min(int(place + 1e-12), len(ratios) - 2)
        between.append(ratios[left] + (place - left) * (ratios[left + 1] - ratios[left]))
    policy = MagCache(ratios=ratios, threshold=threshold)
    assert schedule(policy, calls) == magcache_calls(between, threshold, 3, 0.2)


def test_one_call() -> None:
    assert schedule(MagCache(ratios=(1, 1), warm_up=0), 1) == [1]


# lists


@given(st.sets(st.integers(2, 20)), st.integers(0, 5))
def test_a_list_is_its_schedule(chosen: set[int], more: int) -> None:
    computed = [1, *sorted(chosen)]
    for made_for in (None, computed[-1] + more):
        assert schedule(ListedCalls(computed=computed, calls=made_for), computed[-1] + more) == computed
    assert ListedCalls(computed=computed).needs == Needs()


def test_a_list_for_another_run() -> None:
    with pytest.raises(PolicyError, match=r"generation of 9 calls, and this one has 8"):
        schedule(ListedCalls(computed=(1, 4), calls=9), 8)
    with pytest.raises(PolicyError, match=r"of at least 4 calls, and this one has 3"):
        schedule(ListedCalls(computed=(1, 4)), 3)


# descriptions

TEACACHE = {"name": "teacache", "coefficients": [1, 0], "threshold": 0.1}
MAGCACHE = {"name": "magcache", "ratios": [1, 0.9]}
NEVER = {"name": "never"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "teacache", "threshold": 0.1}, "coefficients: "),
    ({"name": "teacache", "coefficients": [1]}, "threshold: "),
    ({**TEACACHE, "coefficients": []}, "coefficients: "),
    ({**TEACACHE, "coefficients": [1, float("nan")]}, "coefficients.1: "),
    ({**TEACACHE, "threshold": 0}, "threshold: "),
    ({**TEACACHE, "delta": 0.1}, "delta is unknown; known keys: name, coefficients, threshold"),
    ({"name": "fbcache"}, "threshold: "),
    ({"name": "fbcache", "threshold": -1}, "threshold: "),
    ({"name": "easycache", "threshold": float("inf")}, "threshold: "),
    ({"name": "easycache", "tau": 1}, "tau is unknown; known keys: name, threshold"),
    ({**MAGCACHE, "ratios": [1]}, "ratios: "),
    ({**MAGCACHE, "ratios": [1, 0]}, "ratios: Value error, ratios of magnitudes are more than 0"),
    ({**MAGCACHE, "threshold": -0.1}, "threshold: "),
    ({**MAGCACHE, "max_reuses": -1}, "max_reuses: "),
    ({**MAGCACHE, "max_reuses": 1.5}, "max_reuses: "),
    ({**MAGCACHE, "warm_up": 1.1}, "warm_up: "),
    ({"name": "listed", "computed": []}, "computed: "),
    ({"name": "listed", "computed": [2, 3]}, "computed: Value error, expected rising numbers of calls that begin with"),
    ({"name": "listed", "computed": [1, 3, 3]}, "computed: "),
    ({"name": "listed", "computed": [1, 4, 3]}, "computed: "),
    ({"name": "listed", "computed": [1], "calls": 0}, "calls: "),
    ({"name": "warm-up", "calls": 2}, "policy: "),
    ({"name": "warm-up", "policy": NEVER}, "calls: "),
    ({"name": "warm-up", "policy": NEVER, "calls": 0}, "calls: "),
    ({"name": "last-calls", "policy": NEVER, "calls": "x"}, "calls: "),
    ({"name": "max-reuses", "policy": NEVER, "reuses": -1}, "reuses: "),
    ({"name": "extrapolate", "policy": NEVER, "order": 2}, "order is unknown; known keys: policy, name"),
    ({"name": "extrapolate", "policy": {"name": "lemica"}}, 'mine.json: policy: expected an object with "name"'),
    ({"name": "extrapolate", "policy": "never"}, 'mine.json: policy: expected an object with "name"'),
    ({"name": "extrapolate", "policy": {**MAGCACHE, "ratio": 1}}, "mine.json: policy: ratio is unknown"),
]


@pytest.mark.parametrize(("described", "words"), REFUSED)
def test_a_message_names_the_key(described: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        policy_from_description(described, "mine.json")
    assert str(caught.value).startswith("mine.json: ")
    assert words in str(caught.value)
