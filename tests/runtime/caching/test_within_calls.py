"""Policies that look into a call before it is decided, and residuals of other groups, on a model of numpy functions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.manifest import SamplerDefaults
from adacache_engines.errors import NonFiniteError
from adacache_runtime.caching.policies.measured.easycache import EasyCache
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.wrappers import Extrapolate, WarmUp
from adacache_runtime.caching.policy import (
    FIRST,
    LATENTS,
    VELOCITY,
    Decision,
    Measure,
    Needs,
    Policy,
)
from adacache_runtime.pipeline import Pipeline
from tests.helpers.model.fake_model import BLOCKS, fake_pipeline, functions, manifest, request
from tests.helpers.model.not_finite import broken_at
from tests.helpers.model.plain import GROUPS, plain
from tests.helpers.policies.scripted_policy import (
    ADACACHE,
    EASYCACHE,
    FBCACHE,
    INTERVAL,
    TEACACHE,
    Scripted,
    follows,
    words,
)

MODULATED = "spatial.0.modulated"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


@pytest.fixture
def fake(folder: Path) -> tuple[Pipeline, list[str]]:
    return fake_pipeline(folder, functions())


def run(fake: tuple[Pipeline, list[str]], needs: Needs, text: str, granularity: str, **options: Any) -> Scripted:
    pipeline, log = fake
    policy = Scripted(needs, words(text), log)
    pipeline.generate(request(policy=policy, steps=len(policy.decisions), granularity=granularity, **options))
    return policy


# the order of engine calls

END = ["final", "guide", "combine"]
LOOK = ["hidden_change", "observe", "decide"]


def test_the_embedding_comes_before_the_decision(fake) -> None:
    policy = run(fake, TEACACHE.needs, "C R C", "stack")
    computed = [*BLOCKS, "subtract", *END]
    expected = ["text", "embed", "decide", *computed, "embed", *LOOK, "add", *END, "embed", *LOOK, *computed]
    assert policy.log == expected


def test_the_first_block_comes_before_the_decision(fake) -> None:
    policy = run(fake, FBCACHE.needs, "CC CR CC", "first")
    begin, computed = ["embed", BLOCKS[0], "subtract"], [*BLOCKS[1:], "subtract", *END]
    assert policy.log == [
        *["text", *begin, "decide", *computed],
        *[*begin, *LOOK, "add", *END],
        *[*begin, *LOOK, *computed],
    ]


def test_the_first_block_among_blocks(fake) -> None:
    policy = run(fake, FBCACHE.needs, "CCCC CRRC", "block")
    begin = ["embed", BLOCKS[0], "subtract"]
    rest = [name for block in BLOCKS[1:] for name in (block, "subtract")]
    second = [*begin, *LOOK, "add", "add", BLOCKS[3], "subtract", *END]
    assert policy.log == ["text", *begin, "decide", *rest, *END, *second]


def test_a_reused_model_does_not_run_at_all(fake) -> None:
    """Nor is it embedded before the decision: the latents alone are looked at. ``combine`` takes v - x, and adds it."""
    policy = run(fake, EASYCACHE.needs, "C R R C", "model")
    look, computed = ["latents_change", "observe", "decide"], ["embed", *BLOCKS, *END, "combine"]
    late = ["latents_change", "latents_new_magnitude", "combine", "observe"]
    reused, last = [*look, "combine", *late], [*look, *computed[:-1], *late]
    assert policy.log == ["text", "decide", *computed, *reused, *reused, *last]


def test_a_policy_may_look_before_and_after(fake) -> None:
    """Both are of the same call, and its trace has what was made of either."""
    needs = Needs(measures=(Measure("temporal.1.attn"), Measure(LATENTS, calls="all"), Measure(MODULATED, calls="all")))
    policy = run(fake, needs, "C C R", "stack")
    before, after = (LATENTS, MODULATED), ("temporal.1.attn",)
    assert [(call, tuple(m.site for m in shown)) for call, shown in policy.shown] == [
        (2, before),
        (2, after),
        (3, before),
    ]


# the numbers


def sums(old: Any, new: Any, of: Any, prompts: int) -> tuple[Any, Any]:
    """A prompt each: sum |new - old| and sum |of|."""
    by_prompt = [values.astype(np.float64).reshape(-1, prompts, *values.shape[1:]) for values in (old, new, of)]
    axes = tuple(axis for axis in range(by_prompt[0].ndim) if axis != 1)
    change = np.abs(by_prompt[1] - by_prompt[0]).sum(axes)
    return pytest.approx(change, rel=1e-4), pytest.approx(np.abs(by_prompt[2]).sum(axes), rel=1e-4)


@pytest.mark.parametrize("scope", ["prompt", "batch"])
@pytest.mark.parametrize("prompts", [1, 3])
def test_what_is_shown_is_what_numpy_measures(fake, scope: str, prompts: int) -> None:
    """The input of the first block against the call before, its residual against the last computed call, latents and
    velocity against the call before.
    """
    sites = (FIRST, MODULATED, VELOCITY, LATENTS)
    measures = tuple(Measure(site, "all", "computed" if site == FIRST else "measured") for site in sites)
    needs, text = Needs(measures=measures, granularity="first"), "CC CR CR CC CR CC"
    policy = run(fake, needs, text, "first", prompts_count=prompts, scope=scope)
    asked = request(policy=policy, steps=6, granularity="first", prompts_count=prompts)
    seen = plain(fake[0], asked, [decision.compute for decision in policy.decisions], "first")
    last = {2: 1, 3: 1, 4: 1, 5: 4, 6: 4}  # the last computed call before each
    for call in range(2, 7):
        (_, early), (_, (late,)) = [shown for shown in policy.shown if shown[0] == call]
        pairs = {
            LATENTS: (seen.latents[call - 2], seen.latents[call - 1]),
            MODULATED: (seen.modulated[call - 2], seen.modulated[call - 1]),
            FIRST: (seen.first[last[call] - 1], seen.first[call - 1]),
            VELOCITY: (seen.velocities[call - 2], seen.velocities[call - 1]),
        }
        assert [measurement.site for measurement in (*early, late)] == list(pairs)
        for measurement in (*early, late):
            old, new = pairs[measurement.site]
            change, magnitude = sums(old, new, old, prompts)
            if scope == "batch":
                assert len(measurement["change"]) == len(measurement["magnitude"]) == 1
                change, magnitude = (
                    pytest.approx([expected.expected.sum()], rel=1e-4) for expected in (change, magnitude)
                )
            assert np.array(measurement["change"]) == change
            assert np.array(measurement["magnitude"]) == magnitude


# what is reused


CASES: list[tuple[Policy[Any], Sequence[str]]] = [
    (TEACACHE, tuple(GROUPS)),
    (FBCACHE, ("first", "block")),
    (EASYCACHE, tuple(GROUPS)),
    (ADACACHE, tuple(GROUPS)),
    (INTERVAL, tuple(GROUPS)),
]
NAMED = [(policy, granularity) for policy, some in CASES for granularity in some]
SAMPLERS = {
    "rflow": manifest().sampler,
    "ddim": SamplerDefaults(name="ddim", steps=12, guidance=2.0),
    "pndm": SamplerDefaults(name="pndm", steps=12, guidance=2.0),
    "unipc": SamplerDefaults(name="unipc", steps=12, guidance=2.0, timestep_shift=3.0),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("policy", "granularity"), NAMED, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("extrapolates", [False, True], ids=["plain", "extrapolated"])
def test_latents_are_those_of_a_numpy_loop(
    folder: Path, policy: Any, granularity: str, sampler: str, extrapolates: bool
) -> None:
    """With guidance and several prompts, and where the sampler remembers velocities; a reused model gives
    x + (v - x of the last computed call).
    """
    pipeline, _ = fake_pipeline(folder, functions(), sampler=SAMPLERS[sampler])
    chosen = Extrapolate(policy=policy) if extrapolates else policy
    whole = follows(pipeline, granularity, extrapolates, policy=chosen, steps=12, guidance=3.0)
    assert sampler != "rflow" or 1 < sum(whole) < len(whole)


@pytest.mark.parametrize("policy", [ADACACHE, INTERVAL, TEACACHE], ids=lambda policy: policy.name)
def test_the_schedule_is_that_of_the_stack(fake, policy: Any) -> None:
    pipeline, _ = fake
    stack, *others = (
        [
            all(call.compute)
            for call in pipeline.generate(request(policy=policy, granularity=name, steps=14)).trace.calls
        ]
        for name in ("stack", "first", "model", "block")
    )
    assert 2 < sum(stack) < 14
    assert all(other == stack for other in others)


def test_the_policys_own_granularity_is_taken(fake) -> None:
    pipeline, _ = fake
    for policy, granularity in ((TEACACHE, "stack"), (FBCACHE, "first"), (EASYCACHE, "model")):
        for chosen in (policy, WarmUp(policy=Extrapolate(policy=policy), calls=2)):
            trace = pipeline.generate(request(policy=chosen, steps=6)).trace
            assert (trace.granularity, len(trace.calls[0].compute)) == (granularity, len(GROUPS[granularity]))


WEIGHTS = ((0.25, 0.5), (2.0, -1.0), (-0.5, 0.125), (1.0, 0.0))


@pytest.mark.parametrize("granularity", GROUPS)
def test_weights_are_of_each_group_the_newest_first(fake, granularity: str) -> None:
    """And without any the newest residual is added as it is, whatever the weights of the call before."""
    pipeline, _ = fake
    groups = len(GROUPS[granularity])
    computed, reused = Decision((True,) * groups), Decision((False,) * groups)
    weighed = replace(reused, weights=WEIGHTS[:groups])
    newest = replace(reused, weights=((1.0, 0.0),) * groups)
    both = [[computed, computed, reused, weighed, reused], [computed, computed, newest, weighed, newest]]
    needs = Needs(residuals=2, weighted=True)
    one, other = (
        pipeline.generate(request(policy=Scripted(needs, some), granularity=granularity, steps=5, keep_calls=True))
        for some in both
    )
    np.testing.assert_array_equal(one.calls, other.calls)
    np.testing.assert_array_equal(one.latents, other.latents)
    assert not np.array_equal(one.calls[4], one.calls[3])


# NaN


@pytest.mark.parametrize(
    ("policy", "granularity", "name", "where"),
    [
        (TEACACHE, "stack", "embed", "stage embed"),
        (FBCACHE, "first", BLOCKS[0], f"stage {BLOCKS[0]}"),
        (FBCACHE, "block", BLOCKS[3], f"stage {BLOCKS[3]}"),
        (EasyCache(threshold=1e-9), "model", BLOCKS[1], f"stage {BLOCKS[1]}"),
        (Extrapolate(policy=FixedInterval(every=2)), "stack", "blend", "stage blend"),
        (INTERVAL, "model", "final", "stage final"),
        (Extrapolate(policy=INTERVAL), "model", "final", "stage final"),
    ],
)
def test_a_number_that_is_none_is_found(folder: Path, policy: Any, granularity: Any, name: str, where: str) -> None:
    """Stages that ran before the decision are looked at, too; nothing of a spoilt run is left when it is repeated."""
    call = 4
    pipeline, _ = fake_pipeline(folder, broken_at(name, call, 5, np.nan))
    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteError, match=f"in call {call} of 5 .*first in {where};"):
        pipeline.generate(request(policy=policy, granularity=granularity, steps=5))
