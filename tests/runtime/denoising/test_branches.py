"""Guidance branches: decisions for each, one rebuilt from the other, and models and generations that have one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.manifest import GuidanceRule
from adacache_engines.contract.device import Array
from adacache_engines.errors import PolicyError
from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.scheduled.guidance_every import GuidanceEvery
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.wrappers import MaxReuses, WarmUp
from adacache_runtime.caching.policy import LATENTS, Context, Decision, Measure, Measurement, Needs, Observation, Run
from adacache_runtime.caching.simulate import Unchanged, replay, simulate
from adacache_runtime.reports.flops import Work
from adacache_runtime.trace import lanes, read_trace
from tests.helpers.model.fake_model import BLOCKS, fake_pipeline, functions, request
from tests.helpers.model.plain import plain_by_branch
from tests.helpers.policies.policy_runs import places

PROMPTS = 2
BOTH, ALONE = 2 * PROMPTS, PROMPTS  # sizes of a batch


@dataclass(frozen=True)
class Listed:
    """Makes the decisions that it was given."""

    decisions: Sequence[Decision]
    needs: Needs

    def start(self, run: Run) -> None:
        """There is no state."""

    def decide(self, state: None, context: Context) -> tuple[Decision, None]:
        return self.decisions[context.call - 1], None

    def observe(self, state: None, context: Context, measurements: Sequence[Measurement]) -> tuple[Observation, None]:
        return {}, None


def rows(text: str) -> Decision:
    """``"CR/CC"``: the first branch computes its first group and reuses the second, the other computes both."""
    return Decision(tuple(tuple(letter == "C" for letter in word) for word in text.split("/")))


def batches(folder: Path, **changes: Any) -> tuple[Any, dict[str, list[int]]]:
    """A pipeline, and the batches on which its stages ran."""
    seen: dict[str, list[int]] = {}

    def watch(name: str) -> Any:
        function = functions()[name]

        def run(given: Mapping[str, Array]) -> Mapping[str, Array]:
            seen.setdefault(name, []).append(len(given["latents" if name == "embed" else "hidden"]))
            return function(given)

        return run

    watched = {name: watch(name) for name in ("embed", *BLOCKS, "final", "add")}
    rule = changes.get("guidance")
    if rule is not None and rule.order[0] == "unconditional":
        watched["guide"] = guide_unconditional_first
    pipeline, _ = fake_pipeline(folder, {**functions(), **watched}, **changes)
    return pipeline, seen


def guide_unconditional_first(given: Mapping[str, Array]) -> Mapping[str, Array]:
    unconditional, conditional = np.split(given["prediction"], 2)
    return {"velocity": unconditional + given["guidance"] * (conditional - unconditional)}


def near(given: Any, expected: Sequence[Array]) -> None:
    for mine, theirs in zip([*given.calls, given.latents], expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6 * float(np.abs(theirs).max()))


@pytest.mark.parametrize("order", [("conditional", "unconditional"), ("unconditional", "conditional")])
@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_guidance_in_every_third_call_is_the_plain_loop(tmp_path: Path, order: Any, granularity: str) -> None:
    """And a call of one branch runs every stage on half the batch."""
    pipeline, seen = batches(tmp_path / "bundle", guidance=GuidanceRule(order=order, null_captions="null"))
    asked = request(steps=8, guidance=3.0, policy=GuidanceEvery(every=3), granularity=granularity, keep_calls=True)
    result = pipeline.generate(asked)
    alone = Decision((True,), rebuild=tuple(1.0 if branch == "unconditional" else None for branch in order))
    calls = [Decision((True,)) if index in (0, 3, 6, 7) else alone for index in range(8)]
    near(result, plain_by_branch(pipeline, asked, calls, "stack", [3.0] * 8))
    sizes = [BOTH, ALONE, ALONE, BOTH, ALONE, ALONE, BOTH, BOTH]
    assert {name: counts == sizes for name, counts in seen.items()} == dict.fromkeys(["embed", *BLOCKS, "final"], True)


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("rebuilt", [0, 1])
def test_either_branch_is_rebuilt_by_any_share_of_the_difference(tmp_path: Path, weight: float, rebuilt: int) -> None:
    """With 0 the other branch stands for it: no guidance in these calls, which nothing need be kept for."""
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    rebuild = tuple(weight if branch == rebuilt else None for branch in range(2))
    calls = [Decision((True,)), Decision((True,), rebuild=rebuild), Decision((True,), rebuild=rebuild)]
    asked = request(steps=3, guidance=4.0, policy=Listed(calls, Needs(rebuilds=True)), keep_calls=True)
    near(pipeline.generate(asked), plain_by_branch(pipeline, asked, calls, "stack", [4.0] * 3))
    first = replace(asked, policy=Listed(calls[1:2] * 3, Needs(rebuilds=True)))
    if weight:
        with pytest.raises(PolicyError, match="rebuilds a branch at call 1, and no call has run both"):
            pipeline.generate(first)
    else:
        near(pipeline.generate(first), plain_by_branch(pipeline, first, calls[1:2] * 3, "stack", [4.0] * 3))


def test_each_branch_computes_and_reuses_groups_of_its_own(tmp_path: Path) -> None:
    pipeline, seen = batches(tmp_path / "bundle")
    texts = ("CC/CC", "CR/CC", "RR/CR", "RC/RC", "RR/RR", "CC/RR")
    calls = [rows(text) for text in texts]
    policy = Listed(calls, Needs(by_branch=True))
    asked = request(steps=6, guidance=3.0, policy=policy, granularity="first", keep_calls=True)
    result = pipeline.generate(asked)
    near(result, plain_by_branch(pipeline, asked, calls, "first", [3.0] * 6))
    assert seen[BLOCKS[0]] == [BOTH, ALONE, ALONE, ALONE, ALONE]  # of both in the first call, then by branch
    assert seen["add"].count(BOTH) == 3  # where both branches do alike they go together: one, and two groups
    assert result.trace.calls[1].compute == ((True, False), (True, True))
    assert result.trace.calls[3].compute == (False, True)


def test_weights_of_residuals_may_differ_by_branch(tmp_path: Path) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    one, two = ((1.5, -0.5),), ((0.25, 0.75),)
    reuse = Decision(((False,), (False,)), (one, two))
    calls = [Decision((True,)), Decision((True,)), reuse, Decision(((True,), (False,)), (one, two)), reuse]
    policy = Listed(calls, Needs(2, weighted=True, by_branch=True))
    asked = request(steps=5, guidance=3.0, policy=policy, keep_calls=True)
    near(pipeline.generate(asked), plain_by_branch(pipeline, asked, calls, "stack", [3.0] * 5))


def test_the_residual_of_the_whole_model_is_one_for_all_branches(tmp_path: Path) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    asked = request(steps=2, granularity="model", policy=Listed([rows("C/C"), rows("C/R")], Needs(by_branch=True)))
    with pytest.raises(PolicyError, match="granularity model all branches have one residual: choose another"):
        pipeline.generate(asked)


REFUSED = [
    (rows("C/C"), Needs(), "decides for each branch at call 1, which its needs do not say"),
    (rows("C/C/C"), Needs(by_branch=True), "decided for 3 branches at call 1, not 2"),
    (rows("C/R"), Needs(by_branch=True), "reuses group 0 of branch unconditional at call 1"),
    (rows("C/CC"), Needs(by_branch=True), "decided for 2 groups at call 1, not 1"),
    (Decision((True,), rebuild=(None, 0.0)), Needs(), "rebuilds branches at call 1 .*needs have rebuilds False"),
    (Decision((True,), rebuild=(0.0, 0.0)), Needs(rebuilds=True), "one of them must run"),
    (Decision((True,), rebuild=(None,)), Needs(rebuilds=True), "there are 2 branches"),
]


@pytest.mark.parametrize(("decision", "needs", "message"), REFUSED)
def test_decisions_that_cannot_be(tmp_path: Path, decision: Decision, needs: Needs, message: str) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    with pytest.raises(PolicyError, match=message):
        pipeline.generate(request(steps=1, policy=Listed([decision], needs)))


# one branch


def test_a_model_with_one_branch_has_no_guidance(tmp_path: Path) -> None:
    """Such as a distilled one: nothing is guided, whatever the scale, and a batch is the samples."""
    rule = GuidanceRule(order=("conditional",))
    pipeline, seen = batches(tmp_path / "bundle", guidance=rule)
    computed = [Decision((index % 2 == 0 or index == 4,)) for index in range(5)]
    asked = request(steps=5, guidance=7.0, policy=FixedInterval(every=2), keep_calls=True)
    result = pipeline.generate(asked)
    for mine, theirs in zip(
        [*result.calls, result.latents], plain_by_branch(pipeline, asked, computed, "stack", [7.0] * 5), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert seen["embed"] == [ALONE] * 5
    assert "guide" not in pipeline.backend.log


def test_guidance_1_runs_the_conditional_branch_alone(tmp_path: Path) -> None:
    """u + 1 (c - u) is c: it equals the model without the other branch to the bit, and both branches to rounding."""
    one, seen = batches(tmp_path / "bundle")
    single, _ = fake_pipeline(tmp_path / "bundle", functions(), guidance=GuidanceRule(order=("conditional",)))
    asked = request(steps=5, guidance=1.0, policy=GuidanceEvery(every=2), keep_calls=True)
    result = one.generate(asked)
    np.testing.assert_array_equal(result.latents, single.generate(asked).latents)
    assert seen["embed"] == [ALONE] * 5
    near(result, plain_by_branch(one, asked, [Decision((True,))] * 5, "stack", [1.0] * 5))


# wrappers, simulation, traces and reports


def test_wrappers_run_both_branches_where_they_compute() -> None:
    steps = tuple(np.linspace(1000, 100, 8))
    run = Run(8, 1, 1, places("all"), steps, ("conditional", "unconditional"))
    for policy, both in (
        (WarmUp(policy=GuidanceEvery(every=4), calls=3), {1, 2, 3, 5, 8}),
        (MaxReuses(policy=GuidanceEvery(every=7), reuses=1), {1, 3, 5, 7, 8}),
    ):
        state = policy.start(run)
        made = set()
        for call in range(1, 9):
            decision, state = policy.decide(state, Context(run, call, steps[call - 1]))
            if not any(decision.rebuilt(2)):
                made.add(call)
        assert made == both


def test_the_trace_tells_which_branch_ran(tmp_path: Path) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    trace = pipeline.generate(request(steps=4, policy=GuidanceEvery(every=2))).trace
    (tmp_path / "trace.json").write_text(trace.to_json())
    back = read_trace(tmp_path / "trace.json")
    assert [(call.compute, call.rebuilt) for call in back.calls] == [
        ((True,), ()),
        (((True,), (False,)), (False, True)),
        ((True,), ()),
        ((True,), ()),
    ]
    assert back.calls == trace.calls
    assert lanes(trace) == [(True, True), (True, False), (True, True), (True, True)]
    assert trace.computed() == [1, 2, 3, 4]
    assert [call.in_full for call in trace.calls] == [True, False, True, True]


def test_simulation_has_rows_for_branches() -> None:
    decisions = replay(Listed([rows("C/C"), rows("C/R")], Needs(by_branch=True)), (1000.0, 500.0))
    assert decisions == [(True,), ((True,), (False,))]


def test_a_call_of_one_branch_is_half_the_work() -> None:
    parts = Work(text=10, ends=100, groups=(1000, 3000), branches=2)
    assert parts.call((True, True)) == 4100
    assert parts.call(((True, True), (False, False)), (False, True)) == 2050
    assert parts.call(((True, False), (True, True))) == 100 + 1000 + 1500


# measurements by branch


@dataclass(frozen=True)
class Watching(Listed):
    """Makes the decisions that it was given, and writes down what it is shown."""

    shown: list[tuple[int, list[Measurement]]] = field(default_factory=list)

    def observe(self, state: None, context: Context, measurements: Sequence[Measurement]) -> tuple[Observation, None]:
        self.shown.append((context.call, list(measurements)))
        return {}, None


def test_each_branch_is_compared_with_its_own_computed_call(tmp_path: Path) -> None:
    """The site is that of a block, which shows nothing of a branch that reuses it."""
    tensors: list[Array] = []

    def watch(given: Mapping[str, Array]) -> Mapping[str, Array]:
        made = functions()["temporal.00"](given)
        tensors.append(made["attn"].astype(np.float64))
        return made

    pipeline, _ = fake_pipeline(tmp_path / "bundle", {**functions(), "temporal.00": watch})
    needs = Needs(measures=(Measure(),), by_branch=True)
    policy = Watching([rows(word) for word in ("C/C", "C/R", "C/C", "R/C")], needs)
    pipeline.generate(request(policy=policy, steps=4, granularity="stack", scope="prompt"))
    first, second, third, fourth = tensors
    assert [len(tensor) for tensor in tensors] == [BOTH, ALONE, BOTH, ALONE]
    pairs = {
        (2, 0): (first[:PROMPTS], second),
        (3, 0): (second, third[:PROMPTS]),
        (3, 1): (first[PROMPTS:], third[PROMPTS:]),
        (4, 1): (third[PROMPTS:], fourth),
    }
    shown = {(call, one.branch): one for call, some in policy.shown for one in some}
    assert shown.keys() == pairs.keys()
    for place, (old, new) in pairs.items():
        change = np.abs(new - old).sum((1, 2, 3))
        np.testing.assert_allclose(shown[place]["change"], change, rtol=1e-5)
        np.testing.assert_allclose(shown[place]["magnitude"], np.abs(old).sum((1, 2, 3)), rtol=1e-5)


def test_adacache_may_decide_for_each_branch(tmp_path: Path) -> None:
    """Each branch has a rate of its own, from what it shows itself."""
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    policy = AdaCache(codebook=((0.02, 4), (0.05, 3), (0.058, 2), (1.0, 1)), last=0, by_branch=True)
    asked = request(policy=policy, steps=12, guidance=3.0, granularity="stack", keep_calls=True)
    result = pipeline.generate(asked)
    made = [Decision(call.compute) for call in result.trace.calls]
    near(result, plain_by_branch(pipeline, asked, made, "stack", [3.0] * 12))
    one, other = (
        [call for call, decision in enumerate(made, 1) if all(decision.rows(2)[branch])] for branch in range(2)
    )
    assert one != other
    assert all(2 < len(calls) < 12 for calls in (one, other))


def test_a_simulation_measures_by_branch_as_the_loop_does(tmp_path: Path) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    words = ("C/C", "C/R", "C/C", "R/C", "R/R", "C/C")
    needs = Needs(measures=(Measure(), Measure(LATENTS, calls="all")), by_branch=True)
    real, simulated = (Watching([rows(word) for word in words], needs) for _ in range(2))
    pipeline.generate(request(policy=real, steps=6, granularity="stack"))
    run = Run(6, 1, 1, places("all"), (1.0,) * 6, ("conditional", "unconditional"))
    simulate(simulated, run, Unchanged())

    def asked(policy: Watching) -> list[tuple[int, list[int | None]]]:
        return [(call, [one.branch for one in some]) for call, some in policy.shown]

    assert asked(simulated) == asked(real)
