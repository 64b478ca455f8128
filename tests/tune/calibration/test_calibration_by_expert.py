"""Calibration on a model of two experts: each has its own guidance scale, its own calls and its own first one."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.contract.fake import Function
from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.measured.teacache import TeaCache
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.listed import ListedCalls
from adacache_runtime.caching.policies.wrappers import MaxReuses
from adacache_runtime.caching.policy import Policy
from adacache_runtime.caching.presets import policy_from
from adacache_runtime.denoising.segments import segments
from adacache_runtime.request import Request
from adacache_runtime.samplers.registry import updates
from adacache_tune.calibration.baseline import intervals_around
from adacache_tune.calibration.forecast import Forecaster
from adacache_tune.calibration.goal import Goal
from adacache_tune.calibration.methods import EXTRAPOLATED, METHODS, find
from adacache_tune.calibration.recorder import record
from adacache_tune.calibration.records import RESIDUAL, Record, load_record, ratios, save_record
from adacache_tune.calibration.shortest import paths, refined
from adacache_tune.comparison.measure import compare
from tests.helpers.model import fake_model
from tests.helpers.model.experts import GUIDANCES, LOW, functions_of_experts, offloading, two_experts
from tests.helpers.model.fake_model import fake_pipeline, request
from tests.helpers.policies.calibration_command import HELD_OUT, Command, last_line, report
from tests.helpers.policies.calibration_records import wandering

STEPS, GAPS, HIGH = 8, 3, 4  # calls, recorded gaps, and calls of the first expert


def own_ends() -> dict[str, Function]:
    """Return functions of two experts whose stages before and behind the blocks differ, too."""
    plain = functions_of_experts()

    def embed(given: Any) -> Any:
        return {**plain["embed"](given), "hidden": plain["embed"](given)["hidden"] * np.float32(0.75)}

    return {**plain, LOW + "embed": embed, LOW + "final": lambda given: _half(plain["final"](given))}


def _half(made: Any) -> Any:
    return {"prediction": made["prediction"] * np.float32(0.5)}


def one(**options: Any) -> Any:
    return request(prompts_count=1, steps=STEPS, **options)


@pytest.mark.parametrize("scales", [{}, {"guidance_2": 1.5}, {"guidance": 4.0, "guidance_2": 1.0}])
def test_errors_are_those_of_each_experts_own_guidance(tmp_path: Path, scales: dict[str, float]) -> None:
    """The recorded error of reusing the call before is that of a real run which reuses in this call alone."""
    pipeline, _ = fake_pipeline(tmp_path / "bundle", own_ends(), **two_experts())
    asked = one(keep_calls=True, **scales)
    made, result = record(pipeline, asked, GAPS)
    full = pipeline.generate(asked)
    np.testing.assert_array_equal(result.latents, full.latents)
    assert made.calls_by_expert == (HIGH, STEPS - HIGH)
    assert made.firsts == (1, HIGH + 1)
    for call in range(1, STEPS + 1):
        if call in made.firsts:
            assert np.isnan(made.error[:, call - 1]).all()
            continue
        listed = ListedCalls(computed=tuple(other for other in range(1, STEPS + 1) if other != call))
        reused = pipeline.generate(replace(asked, policy=listed))
        assert reused.trace.computed() == [other for other in range(1, STEPS + 1) if other != call]
        after = [*reused.calls, reused.latents][call], [*full.calls, full.latents][call]
        off = (after[0].astype(np.float64) - after[1]).reshape(-1)
        np.testing.assert_allclose(made.error[0, call - 1], off, atol=2e-5)
        assert np.abs(off).max() > 1e-4


def test_calls_of_different_experts_are_not_compared(tmp_path: Path) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions_of_experts(), **two_experts())
    made, _ = record(pipeline, one(), GAPS)
    for site in made.sites.values():
        change = site["change"]
        for gap, call in itertools.product(range(1, GAPS + 1), range(1, STEPS + 1)):
            within = gap < (call if call <= HIGH else call - HIGH)
            assert np.isfinite(change[gap - 1, call - 1]) == within
    assert made.compared.tolist() == [call not in (1, HIGH + 1) for call in range(1, STEPS + 1)]
    save_record(tmp_path / "record.npz", made)
    assert load_record(tmp_path / "record.npz").runs == made.runs
    magnitudes = made.sites[RESIDUAL]["magnitude"][0]
    gamma = ratios([made])
    assert len(gamma) == STEPS
    assert (gamma[0], gamma[HIGH]) == (1.0, 1.0)
    for call in (2, 3, HIGH + 2, HIGH + 3):  # from 1; each magnitude is that of the call before
        assert gamma[call - 1] == pytest.approx(magnitudes[call] / magnitudes[call - 1], abs=1e-5)


def test_a_record_is_the_same_where_experts_take_turns(tmp_path: Path) -> None:
    """The recorder's own bound calls are dropped with the expert that they run, and bound again."""
    both, _ = fake_pipeline(tmp_path / "bundle", functions_of_experts(), **two_experts())
    turns, backend = offloading(tmp_path / "bundle")
    expected, _ = record(both, one(), GAPS)
    for _ in range(2):
        made, result = record(turns, one(), GAPS)
        np.testing.assert_array_equal(made.error, expected.error)
        for name, site in expected.sites.items():
            for key, numbers in site.items():
                np.testing.assert_array_equal(made.sites[name][key], numbers)
        assert HIGH + 1 in result.trace.switches()
    assert backend.experts() == {1}


def apart_from_the_latents() -> dict[str, Function]:
    """Return functions of two experts that depend on the timestep and the text alone, and on no latents."""
    plain = functions_of_experts()

    def embed(given: Any) -> Any:
        time = given["timestep"][:, None]
        ramp = np.linspace(0.5, 1.5, given["latents"][0].size, dtype=np.float32).reshape(given["latents"].shape[1:])
        curve = np.sin(time[:, :, None, None, None] / 90) + 1.5
        return fake_model.run_embed({**given, "latents": (curve * ramp).astype(np.float32)})

    return {**plain, "embed": embed, LOW + "embed": embed}


SIMULATED: dict[str, Policy[Any]] = {
    "adacache": AdaCache(codebook=((0.03, 4), (0.06, 3), (0.09, 2), (1.0, 1)), probe=("temporal.0.attn",)),
    "teacache": TeaCache(coefficients=(1.0, 0.0), threshold=0.2),
    "interval": FixedInterval(every=3),
    "max-reuses": MaxReuses(policy=FixedInterval(every=7), reuses=2),
    "listed": ListedCalls(computed=(1, 4, 6, 15, 16)),
}


@pytest.mark.parametrize("name", SIMULATED)
def test_a_simulation_begins_anew_with_each_expert(tmp_path: Path, name: str) -> None:
    """Its schedule is that of the real run, on a model whose measurements no reuse changes."""
    pipeline, _ = fake_pipeline(tmp_path / "bundle", apart_from_the_latents(), **two_experts())
    asked = replace(one(), steps=20)
    made, _ = record(pipeline, asked, 19)
    computed = made.computed(SIMULATED[name])
    assert computed == pipeline.generate(replace(asked, policy=SIMULATED[name])).trace.computed()
    assert {*made.firsts} <= {*computed}
    assert len(computed) < 20


def by_experts(calls: int, high: int, seed: int) -> Record:
    """Return a record in which nothing is known of what lies on both sides of the switch."""
    made = wandering(calls, seed)
    error, sites = made.error.copy(), {name: {**site} for name, site in made.sites.items()}
    for gap, call in itertools.product(range(1, len(error) + 1), range(high, calls)):
        if call - gap < high:
            error[gap - 1, call] = np.nan
            for site in sites.values():
                for key in ("change", "magnitude"):
                    site[key] = site[key].copy()
                    site[key][gap - 1, call] = np.nan
    return replace(made, error=error, sites=sites, calls_by_expert=(high, calls - high))


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, f"listed{EXTRAPOLATED}", f"interval{EXTRAPOLATED}"])
@pytest.mark.parametrize("goal", [Goal(quality_db=25), Goal(speed_up=1.6)])
def test_every_method_searches_by_expert(method: str, goal: Goal) -> None:
    """Numbers that are not there, of what no run does, spoil no forecast, and each expert's first call is computed."""
    records = [by_experts(14, 6, seed) for seed in range(3)]
    forecaster = Forecaster(records)
    found = find(method, forecaster, goal, tries=10)
    assert np.isfinite(found.quality_db)
    for made in records:
        computed = made.computed(found.policy)
        assert {1, 7} <= {*computed}
    schedules = forecaster.schedules(found.policy)
    assert found.computed == np.mean([len(schedule) for schedule in schedules])


def test_paths_compute_the_first_call_of_each_expert() -> None:
    """They are the best of all schedules that do."""
    calls, high = 8, 3
    forecaster = Forecaster([by_experts(calls, high, seed) for seed in range(2)])
    found = paths(forecaster)
    assert list(found) == list(range(2, calls + 1))

    def cost(schedule: Sequence[int]) -> float:
        reused = [call for call in range(1, calls + 1) if call not in schedule]
        last = {call: max(other for other in schedule if other < call) for call in reused}
        errors = [[record.reuse_error(last[call], call) for record in forecaster.records] for call in reused]
        return float(sum(np.mean([np.sqrt((one**2).mean()) for one in each]) for each in errors))

    others = [call for call in range(1, calls + 1) if call not in (1, high + 1)]
    for count, schedule in found.items():
        every = [tuple(sorted((1, high + 1, *rest))) for rest in itertools.combinations(others, count - 2)]
        assert schedule in every
        assert cost(schedule) == pytest.approx(min(map(cost, every)))
    wanted = (1, high + 1)
    assert refined((1, 2, 4, 6), calls, lambda schedule: len(schedule), wanted, rounds=9) == wanted


def test_fixed_intervals_are_counted_by_expert() -> None:
    made = by_experts(12, 5, 0)
    for label, policy in intervals_around([4, 6], made).items():
        every = int(label.removeprefix("interval-"))
        high = {1, 5, *range(1, 6, every)}
        low = {6, 12, *range(6, 13, every)}
        assert made.computed(policy) == sorted(high | low)


def test_a_comparison_is_the_same_where_experts_take_turns(tmp_path: Path) -> None:
    """Policies run call by call in turn, so that an expert is loaded once for all of them."""
    both, _ = fake_pipeline(tmp_path / "bundle", functions_of_experts(), **two_experts())
    turns, backend = offloading(tmp_path / "bundle")
    policies = {"interval": FixedInterval(every=2), "adacache": SIMULATED["adacache"]}
    before = len(backend.loads)
    requests = [one(height=8, width=8)]
    (expected,), (made,) = (list(compare(pipeline, requests, policies, warm_up=False)) for pipeline in (both, turns))
    for mine, theirs in zip(made.rows, expected.rows, strict=True):
        assert (mine.policy, mine.computed, mine.latent_l2) == (theirs.policy, theirs.computed, theirs.latent_l2)
    assert len(backend.loads) - before == len(fake_model.manifest().stages)


def test_a_list_is_of_the_calls_of_a_generation(tmp_path: Path) -> None:
    """As a trace numbers them; the first call of the second expert is computed, listed or not."""
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions_of_experts(), **two_experts())
    policy = ListedCalls(computed=(1, 3, 7), calls=STEPS)
    assert pipeline.generate(one(policy=policy)).trace.computed() == [1, 3, HIGH + 1, 7]
    called = updates(pipeline.bundle.manifest, STEPS, 1, *fake_model.SIZE[1:], fake_model.SIZE[0])
    assert [part.guidance for part in segments(pipeline.bundle.manifest, called, "stack", 1)] == list(GUIDANCES)


@pytest.mark.slow
@pytest.mark.parametrize("offload", [False, True])
def test_the_command_calibrates_two_experts(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], offload: bool
) -> None:
    """The numbers in the bundle are those of real runs; those of another second guidance scale are not used."""
    folder = fake_model.write_bundle(tmp_path / "experts.adacache", **two_experts()).folder
    command.folder, command.functions, command.expert_offload = folder, functions_of_experts(), offload
    methods = ("listed", "adacache-scaled", "interval")
    assert command("--target-speedup", "1.3", methods=methods) == 0
    asked = [
        Request(prompts=(prompt,), height=8, width=8, steps=STEPS, seed=seed) for seed, prompt in enumerate(HELD_OUT, 5)
    ]
    found = policy_from("calibrated", command.manifest().policies)
    rows = [one.rows[1] for one in compare(command.pipeline(), asked, {"found": found})]
    measured = report("experts-calibration")["methods"][0]["measured"]
    assert measured["computed"] == np.mean([row.computed for row in rows]) < STEPS
    assert measured["quality_db"]["mean"] == pytest.approx(np.mean([row.psnr_db for row in rows]))
    assert command("--target-speedup", "1.3", "--guidance-2", "1.5", methods=methods) == 1
    assert "holds another calibration (other guidance_2)" in last_line(capsys)
