"""Decisions by branch on an exported model: engines run on half the batch, and give the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from adacache_runtime.caching.policies.scheduled.guidance_every import GuidanceEvery
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.caching.policy import Context, Decision, Measurement, Needs, Observation, Run
from adacache_runtime.pipeline import Pipeline
from tests.helpers.originals.reference import request

STEPS = 4


class Apart:
    """Computes every call, each branch by itself."""

    needs = Needs(2, weighted=True, by_branch=True)

    def start(self, run: Run) -> None:
        """There is no state."""

    def decide(self, state: None, context: Context) -> tuple[Decision, None]:
        return Decision((True,) * context.run.groups), None

    def observe(self, state: None, context: Context, measurements: Sequence[Measurement]) -> tuple[Observation, None]:
        return {}, None


def generate(pipeline: Pipeline, policy: Any, **options: Any) -> Any:
    return pipeline.generate(request(steps=STEPS, policy=policy, keep_calls=True, **options))


def apart(one: Any, other: Any) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


def test_branches_by_themselves_are_the_whole_batch(pipeline: Pipeline) -> None:
    assert apart(generate(pipeline, Apart()).latents, generate(pipeline, NeverReuse()).latents) < 1e-4


def test_guidance_in_every_second_call(pipeline: Pipeline) -> None:
    """The call that rebuilds a branch is near the one that runs it, and the first is the same."""
    whole, made = generate(pipeline, NeverReuse()), generate(pipeline, GuidanceEvery(every=2))
    assert [call.rebuilt for call in made.trace.calls] == [(), (False, True), (), ()]
    np.testing.assert_array_equal(made.calls[1], whole.calls[1])
    assert 0 < apart(made.calls[2], whole.calls[2]) < 0.5


def test_guidance_1_needs_one_branch(pipeline: Pipeline) -> None:
    """u + g (c - u) is linear in g, so the first step at 1 lies between those at 0.5 and 1.5."""
    one, *others = (generate(pipeline, NeverReuse(), guidance=scale) for scale in (1.0, 0.5, 1.5))
    assert [made.trace.sizes["batch"] // made.trace.sizes["samples"] for made in (one, *others)] == [1, 2, 2]
    between = sum(made.calls[1].astype(np.float64) for made in others) / 2
    assert one.calls[1] == pytest.approx(between, abs=1e-4)
