"""Whole sampling runs on the exported engines against the original Open-Sora and the original AdaCache."""

import json
from typing import Any

import numpy as np
import pytest

from adacache_runtime.caching.policies.measured.adacache import AdaCache, MoReg
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.events import Denoised
from tests.helpers.originals.reference import DATA, OPEN_SORA, arrays, request, worst

LATENTS = 5e-4  # absolute
NUMBERS = 1e-3  # relative
ROUNDING = 2e-5  # absolute, between granularities
SITES = {"t-attn": "temporal.{}.attn", "s-attn": "spatial.{}.attn"}
RUNS: dict[str, Any] = json.loads((DATA / "adacache" / "index.json").read_text())["runs"]


def policy(params: dict[str, Any]) -> AdaCache:
    probe = tuple(SITES[params["cache_res"]].format(block) for block in params["cache_loc"])
    moreg = None
    if params.get("apply_moreg"):
        h0, exponent, divisor, _unused = params["moreg_hyp"]
        assert divisor == 1
        moreg = MoReg(
            strides=tuple(params["moreg_strides"]),
            window=tuple(params["moreg_steps"]),
            h0=h0,
            exponent=exponent,
            gradient=params["mograd_mul"],
        )
    return AdaCache(codebook=params["codebook"], probe=probe, moreg=moreg)


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest) -> dict[str, Any]:
    return RUNS[request.param]


@pytest.fixture(scope="module")
def results(run: dict[str, Any], pipeline) -> dict[str, Denoised]:
    usual = {"policy": policy(run["params"]), "steps": run["num_sampling_steps"], "keep_calls": True}
    return {choice: pipeline.generate(request(**usual, granularity=choice)) for choice in ("stack", "block")}


@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_the_schedule_is_the_originals(results, run, granularity: str) -> None:
    trace = results[granularity].trace
    assert trace.computed() == run["computed_1based"]
    rates = {
        str(call.call): call.observation.get("rate") for call in trace.calls if call.observation.get("rate") is not None
    }
    assert rates == run["rates_final_per_step"]


@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_distance_motion_and_metric_are_the_originals(results, run, granularity: str) -> None:
    measured = {
        call.call: call.observation for call in results[granularity].trace.calls if call.observation.get("rate")
    }
    events = {event["step"]: event for event in run["events"]}
    assert len(events) == len(run["events"])
    assert measured.keys() == events.keys()
    for step, event in events.items():
        seen = measured[step]
        assert seen["distance"] == pytest.approx(event["dist"], rel=NUMBERS), step
        assert seen["metric"] == pytest.approx(event["metric"], rel=NUMBERS), step
        if run["params"].get("apply_moreg"):
            assert seen["motion"] == pytest.approx(event["motion_raw"], rel=NUMBERS), step
            assert seen["motion_score"] == pytest.approx(event["moreg"], rel=NUMBERS), step
        else:
            assert "motion" not in seen


@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_latents_are_the_originals_all_the_way(results, run, granularity: str) -> None:
    expected = arrays(DATA / "adacache" / run["file"])
    result = results[granularity]
    assert worst(result.latents, expected["z_final"]) <= LATENTS
    assert len(expected["z_in_step0"]) > 3
    assert result.calls is not None
    assert worst(result.calls[expected["z_in_step0"]], expected["z_in"]) <= LATENTS


def test_both_granularities_give_the_same(results) -> None:
    stack, block = results["stack"], results["block"]
    assert stack.trace.computed() == block.trace.computed()
    assert worst(stack.latents, block.latents) <= ROUNDING
    assert {len(call.compute) for call in stack.trace.calls} == {1}
    assert {len(call.compute) for call in block.trace.calls} == {6}


def test_the_plain_sampling_run(pipeline) -> None:
    expected = arrays(OPEN_SORA / "sampling_A.npz")
    result = pipeline.generate(request(keep_calls=True))
    assert result.calls is not None
    assert worst(result.calls, expected["z_in"]) <= LATENTS
    assert worst(result.latents, expected["z_final"]) <= LATENTS
    assert [call.timestep for call in result.trace.calls] == expected["timesteps"][:, 0].tolist()
    assert result.trace.computed() == list(range(1, 31))


def test_never_reusing_is_the_same_in_both_granularities_to_the_bit(pipeline) -> None:
    short = {"steps": 4, "policy": NeverReuse()}
    stack, block = (pipeline.generate(request(**short, granularity=choice)) for choice in ("stack", "block"))
    np.testing.assert_array_equal(stack.latents, block.latents)


# Several sites and prompts. The reference data has none of these runs; what must hold follows from the sums.


def observations(pipeline, probe: tuple[str, ...], **options: Any) -> list[Any]:
    chosen = AdaCache(codebook=[(1.0, 1)], probe=probe, moreg=MoReg(h0=0.056, window=(3, 5)))
    trace = pipeline.generate(request(steps=6, policy=chosen, **options)).trace
    return [call.observation for call in trace.calls][1:]


def test_several_sites_average_their_distances_and_the_last_one_moves(pipeline) -> None:
    """The codebook computes every step, so that all three runs measure the same residuals."""
    sites = ("spatial.1.cross+mlp", "temporal.1.cross+mlp")
    first, last = (observations(pipeline, (site,)) for site in sites)
    for given in (sites, sites[::-1]):  # the order of execution counts, not that of the list
        both = observations(pipeline, given)
        for one, other, mean in zip(first, last, both, strict=True):
            assert mean["distance"] == pytest.approx((one["distance"] + other["distance"]) / 2, rel=1e-6)
            assert mean["motion"] == other["motion"]
            assert mean["metric"] / mean["distance"] == pytest.approx(other["metric"] / other["distance"], rel=1e-6)
    assert any(one["motion"] != other["motion"] for one, other in zip(first, last, strict=True))


def test_the_scope_of_a_prompt_is_the_prompt_alone(pipeline) -> None:
    """With every step computed, prompts do not touch each other: a batch of two shows the more cautious one."""
    chosen = AdaCache(codebook=[(2.0, 1), (3.0, 1)], probe=("temporal.1.attn",))
    usual = request(steps=6, policy=chosen)
    assert usual.captions is not None
    assert usual.latents is not None
    alone = []
    for prompt in range(2):
        part = slice(prompt, prompt + 1)
        captions = type(usual.captions)(usual.captions.embeddings[part], usual.captions.mask[part])
        alone.append(pipeline.generate(request(**vars(usual) | {"captions": captions, "latents": usual.latents[part]})))
    together = pipeline.generate(request(**vars(usual) | {"scope": "prompt"}))
    whole = pipeline.generate(usual)
    np.testing.assert_allclose(together.latents, np.concatenate([one.latents for one in alone]), atol=ROUNDING)
    for call in range(1, 6):
        single = [one.trace.calls[call].observation.get("metric") for one in alone]
        assert together.trace.calls[call].observation.get("metric") == pytest.approx(max(single), rel=1e-4)
        assert min(single) < whole.trace.calls[call].observation.get("metric") < max(single)
