"""Schedules that are found without a model, and how far content can move them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_policies import codebooks, measured
from test_policies import replay as driven

from adacache_runtime.policies import PRESETS
from adacache_runtime.policies.adacache import AdaCache
from adacache_runtime.simulate import bounds, replay


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
