import json
import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adacache_engines.errors import InputError
from adacache_runtime.caching.policies.measured.adacache import AdaCache, MoReg
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.caching.policy import Context, Decision, Measurement, Needs, Policy, Run
from adacache_runtime.caching.presets import PRESETS, policy_from, policy_from_description
from tests.helpers.policies.policy_runs import SITE, changed, codebooks, measured, replay

BOOK = ((0.1, 6), (0.2, 4), (0.3, 2), (1.0, 1))


def steady(calls: int, *values: Measurement) -> dict[int, list[Measurement]]:
    return {call: list(values) for call in range(1, calls + 1)}


# AdaCache, worked out a second time


def scheduled(calls: int, codebook: Sequence[tuple[float, int]], distances: Sequence[float]) -> list[int]:
    """The schedule in the original's own words: a counter that waits for the rate to pass."""
    computed, rate, waited = [1], 1, 0
    for call in range(2, calls + 1):
        waited += 1
        if waited != rate and call not in (calls - 1, calls):
            continue
        metric = distances[call - 1] / rate
        below = [entry for threshold, entry in codebook[:-1] if metric < threshold]
        rate, waited = (below[0] if below else codebook[-1][1]), 0
        computed.append(call)
    return computed


@given(codebook=codebooks(), distances=st.lists(st.floats(0, 3), min_size=1, max_size=60))
def test_the_schedule_is_what_a_straight_reading_gives(
    codebook: list[tuple[float, int]], distances: list[float]
) -> None:
    calls = len(distances)
    shown = {call: [measured(distance)] for call, distance in enumerate(distances, 1)}
    computed, observed = replay(AdaCache(codebook=codebook), calls, shown)
    assert computed == scheduled(calls, codebook, distances)
    assert list(observed) == computed[1:]


@given(calls=st.integers(1, 40), rate=st.integers(1, 50), distance=st.floats(0, 3))
def test_the_first_two_and_the_last_two_are_always_computed(calls: int, rate: int, distance: float) -> None:
    computed, _ = replay(AdaCache(codebook=[(1.0, rate)]), calls, steady(calls, measured(distance)))
    assert {1, min(2, calls), max(1, calls - 1), calls} <= set(computed)


def test_a_rate_is_the_distance_to_the_next_computed_call() -> None:
    """The change is divided by the rate in force: 0.09, then 0.36 / 6, then 2.4 / 6 = 0.4."""
    shown = {2: [measured(0.09)], 8: [measured(0.36)], 14: [measured(2.4)], 15: [measured(0.15)]}
    computed, observed = replay(AdaCache(codebook=BOOK), 16, {**steady(16, measured(9)), **shown})
    assert computed == [1, 2, 8, 14, 15, 16]
    assert [observed[call]["rate"] for call in (2, 8, 14, 15)] == [6, 6, 1, 4]
    assert observed[14]["metric"] == pytest.approx(0.4)


def test_a_threshold_itself_is_not_below() -> None:
    for metric, rate in ((0.1, 4), (math.nextafter(0.1, 0), 6), (0.3, 1), (99.0, 1)):
        _, observed = replay(AdaCache(codebook=BOOK), 9, steady(9, measured(metric)))
        assert observed[2]["rate"] == rate


def test_the_last_threshold_is_never_read() -> None:
    _, observed = replay(AdaCache(codebook=[(0.1, 3), (0.2, 2)]), 9, steady(9, measured(50.0)))
    assert observed[2]["rate"] == 2


def test_a_forced_call_divides_by_the_scheduled_rate() -> None:
    """Call 9 of 10 comes 2 after the last computed one, and still counts as 5."""
    computed, observed = replay(AdaCache(codebook=[(0.5, 5), (1.0, 1)]), 10, steady(10, measured(0.4)))
    assert computed == [1, 2, 7, 9, 10]
    assert observed[9]["distance"] == pytest.approx(0.08)


def test_nothing_cached_is_no_reason_to_reuse() -> None:
    """A residual of zeros has no relative change: NaN, so the last rate."""
    nothing = changed(SITE, (0.0,), (0.0,))
    _, observed = replay(AdaCache(codebook=BOOK), 5, steady(5, nothing))
    assert math.isnan(observed[2]["metric"])
    assert observed[2]["rate"] == BOOK[-1][1]


# motion


def mograd(raw: Sequence[float], window: tuple[int, int], h0: float, exponent: float, gradient: float) -> list[float]:
    """The factor at each call where every call is computed (rate 1), from call 2 on."""
    factors, before = [], 1.0
    for call in range(2, len(raw) + 1):
        now = (raw[call - 1] / h0) ** exponent if window[0] <= call <= window[1] else 1.0
        factors.append(now + abs(gradient * (now - before)))
        before = now
    return factors


@given(
    raw=st.lists(st.floats(0, 2), min_size=2, max_size=12),
    window=st.tuples(st.integers(1, 12), st.integers(1, 12)).map(lambda ends: (min(ends), max(ends))),
    h0=st.floats(0.05, 2),
    exponent=st.sampled_from((1.0, 2.0, 8.0)),
    gradient=st.floats(0, 20),
)
def test_motion_multiplies_the_distance(
    raw: list[float], window: tuple[int, int], h0: float, exponent: float, gradient: float
) -> None:
    moreg = MoReg(window=window, h0=h0, exponent=exponent, gradient=gradient)
    policy = AdaCache(codebook=[(1.0, 1)], moreg=moreg)
    shown = {call: [measured(0.5, [motion])] for call, motion in enumerate(raw, 1)}
    _, observed = replay(policy, len(raw), shown)
    for call, factor in enumerate(mograd(raw, window, h0, exponent, gradient), 2):
        assert observed[call]["metric"] == pytest.approx(0.5 * factor)


def test_the_window_includes_both_ends() -> None:
    policy = AdaCache(codebook=[(1.0, 1)], moreg=MoReg(window=(4, 6), h0=0.5, exponent=1))
    _, observed = replay(policy, 8, steady(8, measured(1.0, [0.25])))
    assert [observed[call]["motion_score"] for call in range(2, 9)] == [1, 1, 0.5, 0.5, 0.5, 1, 1]


def test_motion_is_the_mean_over_strides() -> None:
    policy = AdaCache(codebook=[(1.0, 1)], moreg=MoReg(strides=(1, 2), window=(1, 9), h0=1, exponent=1))
    _, observed = replay(policy, 4, steady(4, measured(1.0, [0.2, 0.6])))
    assert observed[2]["motion"] == pytest.approx(0.4)


def test_the_gradient_is_divided_by_the_rate() -> None:
    policy = AdaCache(codebook=[(9.0, 4), (10.0, 1)], moreg=MoReg(window=(3, 99), h0=1, exponent=1, gradient=10))
    _, observed = replay(policy, 12, steady(12, measured(1.0, [0.2])))
    assert observed[2]["metric"] == 1
    assert observed[6]["metric"] == pytest.approx(1 / 4 * (0.2 + 10 * 0.8 / 4))


@pytest.mark.parametrize("moreg", [MoReg(window=(1, 9)), MoReg(window=(1, 9), gradient=0)])
def test_motion_that_is_not_a_number_gives_the_last_rate(moreg: MoReg) -> None:
    """One frame has no motion."""
    _, observed = replay(AdaCache(codebook=BOOK, moreg=moreg), 5, steady(5, measured(0.01, [math.nan])))
    assert observed[2]["rate"] == BOOK[-1][1]


@pytest.mark.parametrize("moreg", [MoReg(window=(1, 9), h0=1e-60), MoReg(window=(1, 9), exponent=1e6)])
def test_motion_beyond_any_number_gives_the_last_rate(moreg: MoReg) -> None:
    _, observed = replay(AdaCache(codebook=BOOK, moreg=moreg), 5, steady(5, measured(0.01, [1.0])))
    assert observed[2]["rate"] == BOOK[-1][1]


# several sites


def votes(rows: Sequence[Sequence[tuple[float, float]]], h0: float, gradient: float) -> list[float]:
    """The metric at each call from 2 on, rate 1, as the original accumulates it: site after site, a running mean of
    distances, each site with its own motion and memory of it; the last site's product stands.
    """
    memory = dict.fromkeys(range(len(rows[0])), 1.0)
    metrics = []
    for row in rows:
        mean = count = metric = 0.0
        for site, (distance, raw) in enumerate(row):
            mean = (mean * count + distance) / (count + 1)
            count += 1
            now = raw / h0
            metric = mean * (now + abs(gradient * (now - memory[site])))
            memory[site] = now
        metrics.append(metric)
    return metrics


SHOWN = st.tuples(st.floats(0, 2), st.floats(0, 2))


@given(
    rows=st.integers(1, 4).flatmap(
        lambda sites: st.lists(st.lists(SHOWN, min_size=sites, max_size=sites), min_size=1, max_size=8)
    ),
    gradient=st.floats(0, 10),
)
def test_several_sites_vote_as_in_the_original(rows: list[list[tuple[float, float]]], gradient: float) -> None:
    policy = AdaCache(codebook=[(1.0, 1)], moreg=MoReg(window=(1, 99), h0=0.5, exponent=1, gradient=gradient))
    shown = {
        call: [measured(distance, [raw], f"site.{site}") for site, (distance, raw) in enumerate(row)]
        for call, row in enumerate(rows, 2)
    }
    _, observed = replay(policy, len(rows) + 1, shown)
    for call, metric in enumerate(votes(rows, 0.5, gradient), 2):
        assert observed[call]["metric"] == pytest.approx(metric, abs=1e-12)


# several prompts


@given(metrics=st.lists(st.floats(0, 2), min_size=1, max_size=4))
def test_the_most_cautious_prompt_decides(metrics: list[float]) -> None:
    policy = AdaCache(codebook=BOOK)
    _, observed = replay(policy, 5, steady(5, measured(metrics)), units=len(metrics))
    alone = [replay(policy, 5, steady(5, measured(metric)))[1][2]["rate"] for metric in metrics]
    assert observed[2]["rate"] == min(rate for rate in alone if rate is not None)
    assert observed[2]["metric"] == pytest.approx(max(metrics))


def test_a_prompt_without_a_number_is_the_most_cautious() -> None:
    """Its metric is NaN, so its rate is the last one; the trace shows that it was the one to decide."""
    _, observed = replay(AdaCache(codebook=BOOK), 5, steady(5, measured([0.01, math.nan, 5.0])), units=3)
    assert observed[2]["rate"] == 1
    assert math.isnan(observed[2]["metric"])


def test_each_prompt_remembers_its_own_motion() -> None:
    policy = AdaCache(codebook=[(1.0, 1)], moreg=MoReg(window=(1, 9), h0=1, exponent=1, gradient=1))
    rows = {2: ((0.5, 0.9), (1.0, 1.0)), 3: ((1.0, 0.2), (0.5, 1.0))}
    ones = (1.0, 1.0)
    shown = {
        call: [Measurement(SITE, {"change": change, "magnitude": ones, "motion/1": motion, "motion_magnitude/1": ones})]
        for call, (change, motion) in rows.items()
    }
    _, observed = replay(policy, 3, shown, units=2)
    assert observed[3]["metric"] == pytest.approx(1.0 * (0.5 + 0.5))


# all of them


def every_state(policy: Policy[Any]) -> None:
    run = Run(6, 3, 2)
    state = policy.start(run)
    for call in range(1, 7):
        context = Context(run, call, 500.0)
        before = deepcopy(state)
        first, second = policy.decide(state, context), policy.decide(state, context)
        assert first == second
        assert state == before
        decision, state = first
        if decision.compute[0] and call > 1:
            before, shown = deepcopy(state), [measured([0.1, 0.2], [0.3], "b"), measured([0.2, 0.1], [0.4], "a")]
            seen = policy.observe(state, context, shown)
            assert seen == policy.observe(state, context, shown)
            assert state == before
            state = seen[1]


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith(("never", "interval", "adacache"))])
def test_policies_are_pure(name: str) -> None:
    every_state(PRESETS[name])
    assert PRESETS[name].start(Run(6, 3, 2)) == PRESETS[name].start(Run(6, 3, 2))


def test_presets_are_the_published_ones() -> None:
    fast = ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2), (1.0, 1))
    slow = ((0.08, 3), (0.16, 2), (0.24, 1), (0.32, 1), (0.40, 1), (1.0, 1))
    long = ((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4), (1.0, 3))
    usual = MoReg(strides=(1,), window=(4, 26), h0=0.385, exponent=8, gradient=10)
    assert PRESETS["adacache-fast"] == AdaCache(codebook=fast)
    assert PRESETS["adacache-slow"] == AdaCache(codebook=slow)
    assert PRESETS["adacache-fast-100"] == AdaCache(codebook=long)
    assert PRESETS["adacache-fast-moreg"] == AdaCache(codebook=fast, moreg=usual)
    assert PRESETS["adacache-slow-moreg"] == AdaCache(codebook=slow, moreg=usual)
    late = usual.model_copy(update={"window": (10, 90)})
    assert PRESETS["adacache-fast-100-moreg"] == AdaCache(codebook=long, moreg=late)


def test_never_reuses_nothing_and_measures_nothing() -> None:
    never = NeverReuse()
    assert never.needs == Needs(residuals=0)
    assert replay(never, 7, steady(7, measured(0.0)), groups=4)[0] == [1, 2, 3, 4, 5, 6, 7]


@given(calls=st.integers(1, 30), every=st.integers(1, 40))
def test_interval(calls: int, every: int) -> None:
    computed, _ = replay(FixedInterval(every=every), calls, steady(calls, measured(0.0)))
    assert computed == sorted({*range(1, calls + 1, every), calls})
    assert FixedInterval(every=every).needs == Needs(residuals=int(every > 1))


def test_all_groups_are_treated_alike() -> None:
    run = Run(9, 5, 1)
    state = AdaCache(codebook=BOOK).start(run)
    assert AdaCache(codebook=BOOK).decide(state, Context(run, 1, 1000.0))[0] == Decision((True,) * 5)


# policies described by their users

EXAMPLE = {
    "name": "adacache",
    "codebook": [[0.08, 6], [0.16, 5], [0.24, 4], [0.32, 3], [0.40, 2], [1.0, 1]],
    "probe": ["temporal.13.attn"],
    "moreg": {"strides": [1], "window": [4, 26], "h0": 0.385, "exponent": 8, "gradient": 10},
}


def test_the_documented_description(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(EXAMPLE))
    fast = PRESETS["adacache-fast-moreg"]
    assert isinstance(fast, AdaCache)
    assert policy_from(str(path)) == fast.model_copy(update={"probe": ("temporal.13.attn",)})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_be_described(name: str) -> None:
    preset: Any = PRESETS[name]
    assert policy_from(name) is preset
    assert policy_from_description(json.loads(preset.model_dump_json()), "here") == preset


REFUSED: list[tuple[object, list[str]]] = [
    ([], ["adacache", "interval", "never"]),
    ({}, ["adacache", "interval", "never"]),
    ({"name": "adacache2"}, ["adacache2", "adacache", "interval", "never"]),
    ({"name": ["adacache"]}, ["adacache", "interval", "never"]),
    ({"name": "adacache"}, ["codebook"]),
    ({**EXAMPLE, "sites": []}, ["sites is unknown", "codebook", "probe", "moreg"]),
    ({**EXAMPLE, "moreg": {"windows": [1, 2]}}, ["moreg.windows is unknown", "strides", "window", "h0", "gradient"]),
    ({"name": "interval", "moreg": {}}, ["moreg is unknown; known keys: name, every"]),
    ({"name": "never", "every": 2, "rate": 3}, ["every is unknown", "rate is unknown"]),
    ({"name": "interval", "every": 0}, ["every"]),
    ({**EXAMPLE, "codebook": []}, ["codebook"]),
    ({**EXAMPLE, "codebook": [[0.2, 2], [0.1, 3]]}, ["thresholds must rise"]),
    ({**EXAMPLE, "codebook": [[0.1, 0], [0.2, 1]]}, ["rates are at least 1"]),
    ({**EXAMPLE, "codebook": [[0.1, 2, 3]]}, ["codebook"]),
    ({**EXAMPLE, "codebook": [[math.nan, 2], [1.0, 1]]}, ["codebook"]),
    ({**EXAMPLE, "moreg": {"strides": []}}, ["strides"]),
    ({**EXAMPLE, "moreg": {"strides": [0]}}, ["strides are at least 1"]),
    ({**EXAMPLE, "moreg": {"h0": 0}}, ["h0"]),
    ({**EXAMPLE, "moreg": {"h0": math.nan}}, ["h0"]),
    ({**EXAMPLE, "moreg": {"exponent": -1}}, ["exponent"]),
    ({**EXAMPLE, "moreg": {"gradient": math.inf}}, ["gradient"]),
    ({**EXAMPLE, "moreg": {"window": [26, 4]}}, ["window"]),
]


@pytest.mark.parametrize(("described", "words"), REFUSED)
def test_an_impossible_description_is_refused(described: object, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        policy_from_description(described, "mine.json")
    assert all(word in str(caught.value) for word in ["mine.json", *words]), str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_a_file_that_is_no_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"mine\.json is not JSON"):
        policy_from(str(path))


def test_a_policy_that_is_neither_preset_nor_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'fast' is unknown; presets: never, .*adacache-fast.*\.json"):
        policy_from("fast")
    for path in (tmp_path / "absent.json", tmp_path / "folder.json"):
        if path.stem == "folder":
            path.mkdir()
        with pytest.raises(InputError, match="cannot be read"):
            policy_from(str(path))


def test_a_forced_step_is_divided_by_its_real_gap() -> None:
    """The steps that are computed anyway keep the scheduled rate, as in the original."""
    policy, run = AdaCache(codebook=[(0.5, 5), (1.0, 1)]), Run(12, 1, 1)
    state = policy.start(run)
    divided = {}
    for call in range(1, 13):
        decision, state = policy.decide(state, Context(run, call, 1000.0 - call, forced=call == 4))
        if decision.compute[0] and call > 1:
            seen, state = policy.observe(state, Context(run, call, 1000.0 - call), [measured(0.1)])
            divided[call] = 0.1 / seen["distance"]
    assert divided == pytest.approx({2: 1, 4: 2, 9: 5, 11: 5, 12: 5})
