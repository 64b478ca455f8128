"""Published caching constants for Wan: the schedules of the methods' own code, and that all presets are policies."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import Preset
from adacache_export.families import description
from adacache_export.families.description import presets
from adacache_runtime.caching.policies.measured.teacache import TeaCache
from adacache_runtime.caching.policies.scheduled.magcache import MagCache
from adacache_runtime.caching.policy import (
    CONDITIONAL_VELOCITY,
    DEFAULT,
    LATENTS,
    Context,
    Measure,
    Measurement,
    Run,
    rows_of,
)
from adacache_runtime.caching.presets import policy_from
from adacache_runtime.caching.signals.registry import SIGNALS
from adacache_runtime.caching.signals.signal import at_stride
from adacache_runtime.caching.simulate import Unchanged, simulate
from adacache_runtime.samplers.unipc import unipc_sigmas
from tests.helpers.originals.easycache_original import easycache_calls
from tests.helpers.originals.lightx2v_original import lightx2v_calls
from tests.helpers.originals.magcache_original import Kind, magcache_calls
from tests.helpers.originals.teacache_original import teacache_calls

Floats = NDArray[np.float64]

FOLDER = Path(description.__file__).parent / "wan"
ORDER = ("unconditional", "conditional")  # as the model evaluates them; the original has the conditional branch first
BOUNDARIES = {"t2v-a14b": 0.875, "i2v-a14b": 0.9}
SHIFTS = {"t2v-a14b": 12.0, "i2v-a14b": 5.0}
MODELS = ("t2v-1.3b", "t2v-14b", "i2v-14b-480p", "i2v-14b-720p", "t2v-a14b", "i2v-a14b", "ti2v-5b")
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
    """In each of two experts; and at the published 40 steps also where the sums of the first one go on."""
    policy: Any = policy_from(name, presets(FOLDER, model))
    assert policy.needs.by_branch
    ratios = [*itertools.chain(*zip(policy.ratios[1:], policy.unconditional[1:], strict=True))]
    kind: Kind = "one" if model not in BOUNDARIES else "text" if model.startswith("t2v") else "image"
    high = high_noise_steps(model, steps)
    share = policy.later_warm_up or policy.warm_up
    given = (ratios, steps, policy.threshold, policy.max_reuses, share, kind, high)
    expected = magcache_calls(*given, carried=False)
    made = schedule(policy, steps, high)
    assert made == expected
    assert steps != 40 or made == magcache_calls(*given)
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


@dataclass(frozen=True)
class Tensors(Unchanged):
    """Answers what a policy measures from tensors (calls, values), by site."""

    sites: Mapping[str, Floats]

    def measurement(self, measure: Measure, earlier: int, call: int) -> Measurement:
        old, new = self.sites[measure.site][[earlier - 1, call - 1]]
        sums = {"change": abs(new - old), "magnitude": abs(old), "new_magnitude": abs(new)}
        return Measurement(measure.site, {number: (float(values.sum()),) for number, values in sums.items()})


def simulated(policy: Any, sites: Mapping[str, Floats]) -> list[bool]:
    """Return for each call whether it is computed, by all branches alike."""
    calls = len(next(iter(sites.values())))
    run = Run(calls, 1, 1, timesteps=tuple(1000.0 - call for call in range(calls)))
    return [any(map(any, rows_of(compute))) for compute in simulate(policy, run, Tensors(sites)).decisions]


def drift(random: np.random.Generator, calls: int, speeds: tuple[float, float]) -> Floats:
    """Return a tensor (calls, values) whose relative change from call to call is between two speeds."""
    made = [random.standard_normal(64)]
    for speed in random.uniform(*speeds, calls - 1):
        step = random.standard_normal(64)
        made.append(made[-1] + speed * abs(made[-1]).mean() / abs(step).mean() * step)
    return np.stack(made)


# preset -> site that its published code measures, number of first and of last steps that it always computes
TEACACHE = {
    "teacache": ("time", 1, 1),
    "teacache-retention-slow": ("time_modulation", 5, 0),
    "teacache-retention-fast": ("time_modulation", 5, 0),
}
# model -> relative changes at which its polynomial without retention steps is near its threshold
SPEEDS = {
    "t2v-1.3b": (0.01, 0.15),
    "t2v-14b": (0.1, 0.26),
    "i2v-14b-480p": (0.04, 0.1),
    "i2v-14b-720p": (0.06, 0.16),
}


@pytest.mark.parametrize("model", SPEEDS)
@pytest.mark.parametrize("name", TEACACHE)
@pytest.mark.parametrize("seed", range(4))
def test_teacache_is_its_published_code(model: str, name: str, seed: int) -> None:
    """It counts each branch by itself, and both alike, on what is the same for both."""
    site, first, last = TEACACHE[name]
    speeds = SPEEDS[model] if name == "teacache" else (0.005, 0.06)
    policy: Any = policy_from(name, presets(FOLDER, model))
    rule: TeaCache = getattr(policy, "policy", policy)
    assert policy.needs.measures == (Measure(site, calls="all"),)
    tensors = drift(np.random.default_rng(seed), 50, speeds)
    expected = teacache_calls(tensors, rule.coefficients, rule.threshold, first, last)
    assert simulated(policy, {site: tensors}) == expected
    assert first + last < sum(expected) < len(expected)


# model -> threshold of its published code, number of first and of last steps that it always computes
EASYCACHE = {
    "t2v-1.3b": (0.05, 10, 1),
    "t2v-14b": (0.05, 10, 1),
    "t2v-a14b": (0.06, 7, 1),
    "ti2v-5b": (0.05, 7, 0),
}


@pytest.mark.parametrize("model", EASYCACHE)
@pytest.mark.parametrize("seed", range(4))
def test_easycache_is_its_published_code(model: str, seed: int) -> None:
    """The conditional branch decides for both; in a model of two experts in each as in a generation of its own."""
    random, (threshold, first, last) = np.random.default_rng(seed), EASYCACHE[model]
    latents, outputs = drift(random, 40, (0.02, 0.2)), drift(random, 40, (0.005, 0.04))
    made = simulated(
        policy_from("easycache", presets(FOLDER, model)), {LATENTS: latents, CONDITIONAL_VELOCITY: outputs}
    )
    assert made == easycache_calls(latents, outputs, threshold, first, last)
    assert first + last < sum(made) < len(made)


def by_branch(policy: Any, residuals: Floats) -> list[tuple[bool, ...]]:
    """Return for each call which branches are computed; residuals are (branches, calls, frames, tokens, width)."""
    branches, calls, frames = residuals.shape[:3]
    run, earlier = Run(calls, 1, 1, branches=ORDER[:branches]), np.arange(frames - 1)
    state, last, made = policy.start(run), dict[int, int](), list[tuple[bool, ...]]()
    for call in range(calls):
        context, shown = Context(run, call + 1, 1000.0 - call), []
        decision, state = policy.decide(state, context)
        made.append(tuple(computed for (computed,) in decision.rows(branches)))
        for branch in range(branches):
            if made[-1][branch] and branch in last:
                cached, new = residuals[branch, [last[branch], call]][:, None]
                given = {"cached": cached, "new": new, "earlier": earlier, "later": earlier + 1}
                numbers = SIGNALS["change"].in_numpy("hidden", given)
                moved = SIGNALS["motion"].in_numpy("hidden", given)
                numbers |= {at_stride(number, 1): values for number, values in moved.items()}
                values = {number: tuple(sums.tolist()) for number, sums in numbers.items()}
                shown.append(Measurement("joint.15.attn", values, branch))
        if shown:
            _, state = policy.observe(state, context, shown)
        last |= {branch: call for branch in range(branches) if made[-1][branch]}
    return made


@pytest.mark.parametrize("model", ["t2v-1.3b", "t2v-14b"])
@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("seed", range(4))
def test_adacache_is_that_of_lightx2v(model: str, steps: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    policy: Any = policy_from("adacache-lightx2v", presets(FOLDER, model))
    assert policy.needs.by_branch
    assert [measure.site for measure in policy.needs.measures] == [DEFAULT]  # the attention of the middle block
    still, moving = random.standard_normal((2, 1, 1, 4, 3)), random.standard_normal((2, 1, 5, 4, 3))
    there = still + random.uniform(0.2, 0.6, (2, steps, 1, 1, 1)) * moving
    residuals = there + np.cumsum(0.02 * random.standard_normal((2, steps, 5, 4, 3)), axis=1)
    made = by_branch(policy, residuals)
    expected = [lightx2v_calls(residuals[branch].reshape(steps, 5, -1)) for branch in range(2)]
    assert made == list(zip(*expected, strict=True))
    assert expected[0] != expected[1]
    assert by_branch(policy, residuals[:1]) == [(computed,) for computed in expected[0]]


@pytest.mark.parametrize(("model", "name"), OF_MODELS)
def test_presets_are_policies_that_say_where_they_are_from(model: str, name: str) -> None:
    assert policy_from(name, presets(FOLDER, model))
    assert preset(model, name).note


def test_a_models_presets_are_its_own() -> None:
    assert {*presets(FOLDER)} == {*presets(FOLDER, "another")} == {"adacache-fast"}
    assert presets(FOLDER, "t2v-1.3b")["magcache-fast"] != presets(FOLDER, "t2v-14b")["magcache-fast"]
