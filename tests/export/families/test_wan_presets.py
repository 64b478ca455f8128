"""Published caching constants for Wan: the schedules of the methods' own code, and that all presets are policies."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adacache_engines.bundle.manifest import Preset
from adacache_export.families import description
from adacache_export.families.description import presets
from adacache_runtime.caching.policies.scheduled.magcache import MagCache
from adacache_runtime.caching.policy import Context, Measure, Measurement, Run, rows_of
from adacache_runtime.caching.presets import policy_from
from adacache_runtime.samplers.unipc import unipc_sigmas
from tests.helpers.originals.magcache_original import Kind, magcache_calls
from tests.helpers.originals.teacache_original import teacache_calls

FOLDER = Path(description.__file__).parent / "wan"
ORDER = ("unconditional", "conditional")  # as the model evaluates them; the original has the conditional branch first
BOUNDARIES = {"t2v-a14b": 0.875, "i2v-a14b": 0.9}
SHIFTS = {"t2v-a14b": 12.0, "i2v-a14b": 5.0}
MODELS = ("t2v-1.3b", "t2v-14b", "t2v-a14b", "i2v-a14b", "ti2v-5b")
OF_MODELS = [(model, name) for model in MODELS for name in presets(FOLDER, model)]
MAGCACHE = [(model, name) for model, name in OF_MODELS if name.startswith("magcache")]


def preset(model: str, name: str) -> Preset:
    return presets(FOLDER, model)[name]


def schedule(policy: MagCache, steps: int, high: int, order: tuple[str, ...] = ORDER) -> list[tuple[bool, ...]]:
    """Return for each step whether the conditional and the unconditional branch are computed, over both experts."""
    computed = []
    for before, calls, after in ((0, high, steps - high), (high, steps - high, 0)):
        run = Run(calls, 3, 1, branches=order, before=before, after=after)
        for decision in policy.start(run) if calls else ():
            rows = rows_of(decision.compute)
            assert all(len({*row}) == 1 for row in rows)
            both = {branch: row[0] for branch, row in zip(order, rows * (len(order) // len(rows)), strict=True)}
            computed.append(tuple(both[branch] for branch in ("conditional", "unconditional") if branch in order))
    return computed


def high_noise_steps(model: str, steps: int) -> int:
    if model not in BOUNDARIES:
        return 0
    timesteps = (unipc_sigmas(steps, SHIFTS[model])[:-1] * 1000).astype(int)
    return int((timesteps >= 1000 * BOUNDARIES[model]).sum())


@pytest.mark.parametrize(("model", "name"), MAGCACHE)
@pytest.mark.parametrize("steps", [20, 30, 40, 50, 60])
def test_magcache_is_its_published_code(model: str, name: str, steps: int) -> None:
    policy: Any = policy_from(name, presets(FOLDER, model))
    assert policy.needs.by_branch
    ratios = [*itertools.chain(*zip(policy.ratios[1:], policy.unconditional[1:], strict=True))]
    kind: Kind = "one" if model not in BOUNDARIES else "text" if model.startswith("t2v") else "image"
    high = high_noise_steps(model, steps)
    share = policy.later_warm_up or policy.warm_up
    expected = magcache_calls(ratios, steps, policy.threshold, policy.max_reuses, share, kind, high)
    made = schedule(policy, steps, high)
    assert made == expected
    assert sum(map(any, made)) < steps
    alone = schedule(policy, steps, high, ("conditional",))
    assert alone == [(conditional,) for conditional, _ in expected]


THRESHOLDS = (0.0137171, 0.0613171, 0.1213171, 0.2419171)  # of which no ratio's error is a neighbour
LISTS = st.lists(st.tuples(st.floats(0.5, 1.2), st.floats(0.5, 1.2)), min_size=2, max_size=30)


@given(
    LISTS, st.integers(2, 40), st.sampled_from(THRESHOLDS), st.integers(0, 5), st.sampled_from((0.1, 0.2, 0.33, 0.5))
)
def test_any_ratios_of_two_branches(
    pairs: list[tuple[float, float]], steps: int, threshold: float, longest: int, retention: float
) -> None:
    conditional, unconditional = zip(*pairs, strict=True)
    policy = MagCache(
        ratios=(1, *conditional),
        unconditional=(1, *unconditional),
        interpolation="nearest",
        threshold=threshold,
        max_reuses=longest,
        warm_up=retention,
    )
    expected = magcache_calls([*itertools.chain(*pairs)], steps, threshold, longest, retention)
    expected[0] = (True, True)  # the published shares always keep the first step
    if int(2 * steps * retention) >= 2:
        assert schedule(policy, steps, 0) == expected


@pytest.mark.parametrize("model", ["t2v-1.3b", "t2v-14b"])
@pytest.mark.parametrize("seed", range(8))
def test_teacache_is_its_published_code(model: str, seed: int) -> None:
    """Both decide alike on embeddings that drift as those of timesteps do: ever slower."""
    policy: Any = policy_from("teacache", presets(FOLDER, model))
    assert policy.needs.measures == (Measure("time", calls="all"),)
    random = np.random.default_rng(seed)
    drift = random.uniform(0.01, 0.2, (40, 1)) * random.standard_normal((40, 64))
    embeddings = np.cumsum(np.concatenate([random.standard_normal((1, 64)), drift]), axis=0)
    run = Run(len(embeddings), 1, 1)
    state, made = policy.start(run), []
    for call, now in enumerate(embeddings, 1):
        context = Context(run, call, 1000.0 - call)
        if call > 1:
            before = embeddings[call - 2]
            numbers = {"change": (float(abs(now - before).sum()),), "magnitude": (float(abs(before).sum()),)}
            _, state = policy.observe(state, context, [Measurement("time", numbers)])
        decision, state = policy.decide(state, context)
        made.append(decision.compute[0])
    assert made == teacache_calls(embeddings, policy.coefficients, policy.threshold)


@pytest.mark.parametrize(("model", "name"), OF_MODELS)
def test_presets_are_policies_that_say_where_they_are_from(model: str, name: str) -> None:
    assert policy_from(name, presets(FOLDER, model))
    assert preset(model, name).note


def test_a_models_presets_are_its_own() -> None:
    assert {*presets(FOLDER)} == {*presets(FOLDER, "another")} == {"adacache-fast"}
    assert presets(FOLDER, "t2v-1.3b")["magcache-fast"] != presets(FOLDER, "t2v-14b")["magcache-fast"]
