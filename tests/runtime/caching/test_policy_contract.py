"""Refusals of what a policy asks for in vain, before anything runs wherever that can be known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.errors import InputError, PolicyError
from adacache_runtime.caching.policies.wrappers import Extrapolate, MaxReuses, WarmUp
from adacache_runtime.caching.policy import BLOCK_INPUT, DEFAULT, FIRST, LATENTS, VELOCITY, Decision, Measure, Needs
from adacache_runtime.pipeline import Pipeline
from tests.helpers.model.fake_model import BLOCKS, fake_pipeline, functions, manifest, request
from tests.helpers.policies.scripted_policy import FBCACHE, TEACACHE, Scripted, words

ALL = "all"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


@pytest.fixture
def fake(folder: Path) -> tuple[Pipeline, list[str]]:
    return fake_pipeline(folder, functions())


def unprobed() -> dict[str, Any]:
    """The embedding shows nothing."""
    stages = manifest().stages
    return {"stages": tuple(s.model_copy(update={"probes": {}}) if s.graph.name == "embed" else s for s in stages)}


def test_a_missing_probe_is_named_with_the_option_that_adds_it(folder: Path) -> None:
    """Beside those that the bundle has, for an export has the probes that it is told."""
    pipeline, log = fake_pipeline(folder, functions(), **unprobed())
    for policy in (TEACACHE, MaxReuses(policy=WarmUp(policy=TEACACHE, calls=2), reuses=2)):
        with pytest.raises(InputError, match=rf"measures {BLOCK_INPUT}, which this bundle has no probe for") as caught:
            pipeline.generate(request(policy=policy))
        assert f"--probe {BLOCK_INPUT}" in str(caught.value)
        assert "--probe temporal.0.attn" in str(caught.value)
    assert log == []


IMPOSSIBLE: list[tuple[Needs, str, str]] = [
    (Needs(measures=(Measure("temporal.0.attn", ALL),)), "stack", "temporal.0.attn in all calls.*in computed calls"),
    (Needs(measures=(Measure(DEFAULT, ALL),)), "stack", "temporal.0.attn in all calls"),
    (Needs(measures=(Measure(LATENTS, ALL, signals=("motion",)),)), "stack", "signal motion of latents"),
    (Needs(measures=(Measure(VELOCITY, signals=("motion",)),)), "stack", "signal motion of velocity"),
    (Needs(measures=(Measure(FIRST, ALL),)), "model", "residual of the first group.*granularity"),
    (Needs(residuals=0, measures=(Measure(FIRST),)), "first", "residual of the first group.*keeps residuals"),
]


@pytest.mark.parametrize(("needs", "granularity", "message"), IMPOSSIBLE)
def test_measures_that_cannot_be(fake, needs: Needs, granularity: Any, message: str) -> None:
    pipeline, log = fake
    with pytest.raises(PolicyError, match=message):
        pipeline.generate(request(policy=Scripted(needs, words("CC CC")), granularity=granularity, steps=2))
    assert log == []


@pytest.mark.parametrize("granularity", ["stack", "model"])
def test_fbcache_is_refused_where_there_is_no_first_block(fake, granularity: Any) -> None:
    pipeline, log = fake
    for policy in (FBCACHE, Extrapolate(policy=FBCACHE)):
        with pytest.raises(PolicyError, match="--granularity first, or block"):
            pipeline.generate(request(policy=policy, granularity=granularity))
    assert log == []


def test_the_first_group_is_not_reused_where_it_is_looked_at(fake) -> None:
    """It has run when the decision comes, so a reuse would be a lie in the trace."""
    pipeline, _ = fake
    needs = Needs(measures=(Measure(FIRST, ALL),))
    with pytest.raises(PolicyError, match=r"reuses group 0 at call 2, .*measures its residual in all calls"):
        pipeline.generate(request(policy=Scripted(needs, words("CC RC")), granularity="first", steps=2))


@pytest.mark.parametrize("granularity", ["stack", "first", "block"])
def test_the_first_group_may_be_looked_at_in_computed_calls(fake, granularity: Any) -> None:
    """Then it is as any other, and may be reused."""
    pipeline, log = fake
    groups = {"stack": 1, "first": 2, "block": 4}[granularity]
    policy = Scripted(Needs(measures=(Measure(FIRST),)), words(" ".join(letter * groups for letter in "CRC")))
    pipeline.generate(request(policy=policy, granularity=granularity, steps=3))
    assert [log.count(name) for name in (*BLOCKS, "add")] == [2, 2, 2, 2, groups]
    assert [(call, [m.site for m in shown]) for call, shown in policy.shown] == [(3, [FIRST])]


REUSED = (False, False)
WRONG: list[tuple[Needs, Sequence[Sequence[float]]]] = [
    (Needs(), ((1.0,), (1.0,))),
    (Needs(residuals=2), ((1.0, 0.0), (1.0, 0.0))),
    (Needs(weighted=True), ((1.0, 0.0), (1.0, 0.0))),
    (Needs(residuals=2, weighted=True), ((1.0,), (1.0,))),
    (Needs(residuals=2, weighted=True), ((1.0, 0.0), (1.0,))),
    (Needs(residuals=2, weighted=True), ((1.0, 0.0),)),
    (Needs(residuals=2, weighted=True), ((1.0, 0.0),) * 3),
    (Needs(residuals=2, weighted=True), ((),)),
]


@pytest.mark.parametrize(("needs", "weights"), WRONG)
def test_weights_that_do_not_fit(fake, needs: Needs, weights: Any) -> None:
    pipeline, _ = fake
    policy = Scripted(needs, [*words("CC"), Decision(REUSED, weights)])
    with pytest.raises(PolicyError, match="weighs residuals at call 2"):
        pipeline.generate(request(policy=policy, granularity="first", steps=2))
