"""Several experts, each for a range of timesteps: a switch begins anew, and nothing of one is reused by the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.errors import InputError, PolicyError
from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.listed import ListedCalls
from adacache_runtime.caching.policy import LATENTS, Context, Decision, Measure, Measurement, Needs, Observation, Run
from tests.helpers.model.experts import GUIDANCES, LOW, SCALES, TEXT_SCALES, functions_of_experts, two_experts
from tests.helpers.model.fake_model import BLOCKS, fake_pipeline, request
from tests.helpers.model.plain import plain_by_branch

STEPS, FIRST_OF_LOW = 8, 4  # timesteps 1000, 875, 750, 625, and from 500 on the second expert's


@pytest.fixture
def pipeline(tmp_path: Path) -> Any:
    made, _ = fake_pipeline(tmp_path / "bundle", functions_of_experts(), **two_experts())
    return made


def by_call(values: Sequence[float]) -> list[float]:
    return [values[int(call >= FIRST_OF_LOW)] for call in range(STEPS)]


@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_each_expert_makes_its_calls_with_its_own_guidance(pipeline: Any, granularity: str) -> None:
    """An interval of 3 begins anew at the switch: calls 1 and 4, the last of a run, and 5 and 8 are computed."""
    asked = request(steps=STEPS, policy=FixedInterval(every=3), granularity=granularity, keep_calls=True)
    result = pipeline.generate(asked)
    assert result.trace.computed() == [1, 4, 5, 8]
    compute = [Decision((call in (0, 3, 4, 7),)) for call in range(STEPS)]
    expected = plain_by_branch(
        pipeline, asked, compute, "stack", by_call(GUIDANCES), by_call(SCALES), by_call(TEXT_SCALES)
    )
    for mine, theirs in zip([*result.calls, result.latents], expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * float(np.abs(theirs).max()))
    log = pipeline.backend.log
    assert [log.count(name) for name in ("text", LOW + "text")] == [1, 1]
    assert [log.count(name) for name in (BLOCKS[0], LOW + BLOCKS[0])] == [2, 2]


def test_a_request_has_the_last_word_on_guidance(pipeline: Any) -> None:
    asked = request(steps=STEPS, guidance=5.0, keep_calls=True)
    compute = [Decision((True,))] * STEPS
    expected = plain_by_branch(pipeline, asked, compute, "stack", [5.0] * STEPS, by_call(SCALES), by_call(TEXT_SCALES))
    np.testing.assert_allclose(pipeline.generate(asked).latents, expected[-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "scales"),
    [
        ({"guidance_2": 1.5}, (GUIDANCES[0], 1.5)),
        ({"guidance": 5.0, "guidance_2": 1.5}, (5.0, 1.5)),
        ({"guidance": 5.0}, (5.0, 5.0)),
        ({}, GUIDANCES),
    ],
)
def test_each_expert_may_be_given_a_guidance_scale(pipeline: Any, given: Any, scales: Sequence[float]) -> None:
    settled = pipeline.prepare(request(steps=STEPS, **given)).checked.settled
    assert tuple(segment.guidance for segment in settled.segments) == scales


def test_a_second_guidance_scale_is_refused_where_there_is_one_expert(tmp_path: Path) -> None:
    single, _ = fake_pipeline(tmp_path / "single", functions_of_experts())
    with pytest.raises(InputError, match="one guidance scale"):
        single.prepare(request(steps=STEPS, guidance_2=2.0))


@dataclass(frozen=True)
class Noted:
    """Computes every call, and writes down what it is told."""

    needs: Needs = field(default_factory=lambda: Needs(measures=(Measure(LATENTS, calls="all"),)))
    events: list[tuple[Any, ...]] = field(default_factory=list)

    def start(self, run: Run) -> int:
        self.events.append(("start", run.calls, run.places[0].name, run.timesteps[0]))
        return 0

    def decide(self, state: int, context: Context) -> tuple[Decision, int]:
        self.events.append(("decide", context.call, state))
        return Decision((True,)), context.call

    def observe(self, state: int, context: Context, measurements: Sequence[Measurement]) -> tuple[Observation, int]:
        self.events.append(("observe", context.call))
        return {}, state


def test_a_policy_is_told_of_each_experts_calls_as_a_run_of_its_own(pipeline: Any) -> None:
    """With a state of its own, and nothing that the other expert's calls showed."""
    policy = Noted()
    result = pipeline.generate(request(steps=STEPS, policy=policy))
    high = [("start", 4, "spatial.00 to temporal.01", 1000.0), ("decide", 1, 0)]
    low = [("start", 4, f"{LOW}spatial.00 to {LOW}temporal.01", 500.0), ("decide", 1, 0)]
    rest = [event for call in (2, 3, 4) for event in (("observe", call), ("decide", call, call - 1))]
    assert policy.events[2:] == [*high, *rest, *low, *rest]  # the first two: when the request was checked
    assert [event[0] for event in policy.events[:2]] == ["start", "start"]
    assert [record.call for record in result.trace.calls] == list(range(1, STEPS + 1))


def test_a_measured_policy_computes_the_call_after_a_switch(pipeline: Any) -> None:
    policy = AdaCache(codebook=[(1.0, 3)], probe=("temporal.0.attn",))
    assert pipeline.generate(request(steps=STEPS, policy=policy)).trace.computed()[:4] != []
    computed = pipeline.generate(request(steps=STEPS, policy=policy)).trace.computed()
    assert 1 in computed
    assert FIRST_OF_LOW + 1 in computed


@dataclass(frozen=True)
class Careless:
    """Computes the first call of a generation only."""

    needs: Needs = field(default_factory=Needs)
    seen: list[float] = field(default_factory=list)

    def start(self, run: Run) -> None:
        """There is no state."""

    def decide(self, state: None, context: Context) -> tuple[Decision, None]:
        return Decision((context.timestep == 1000,)), None

    def observe(self, state: None, context: Context, measurements: Sequence[Measurement]) -> tuple[Observation, None]:
        return {}, None


def test_residuals_of_one_expert_are_never_reused_by_the_other(pipeline: Any) -> None:
    with pytest.raises(PolicyError, match="reuses group 0 at call 1, for which no residual was kept"):
        pipeline.generate(request(steps=STEPS, policy=Careless()))


def test_memory_counts_the_weights_of_both_experts(pipeline: Any) -> None:
    graphs = [graph.name for graph in pipeline.bundle.manifest.loop_graphs()]
    assert {*BLOCKS, *(LOW + name for name in BLOCKS)} <= {*graphs}
    asked = request(steps=STEPS, policy=ListedCalls(computed=(1,)))
    one = pipeline.prepare(asked).memory
    assert one.residuals == 4 * 4 * 40 * 3  # of one expert: bytes, 2 prompts x 2 branches, tokens, width
