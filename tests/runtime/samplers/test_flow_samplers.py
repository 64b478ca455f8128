"""UniPC and Euler steps on a flow: diffusers' schedulers call by call, and the measured order."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from adacache_engines.errors import InputError
from adacache_export.families.open_sora.family import OpenSoraConfig, describe
from adacache_runtime.samplers.euler import euler
from adacache_runtime.samplers.registry import SAMPLERS, samplers_of, updates
from adacache_runtime.samplers.unipc import HISTORY, unipc
from adacache_runtime.samplers.update import Update
from tests.helpers.model import fake_model
from tests.helpers.model.fake_model import fake_pipeline, functions, request, run_guide
from tests.helpers.originals.flow_schedulers import called, differences, manifest

SHIFTS = (1.0, 3.0, 5.0, 8.0, 12.0)


def diffusers_scheduler(name: str, steps: int, shift: float) -> Any:
    """Return diffusers' scheduler in the state in which a pipeline calls it."""
    scheduler: Any = (
        FlowMatchEulerDiscreteScheduler(shift=shift)
        if name == "euler"
        else UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    )
    return called(scheduler, steps)


def assert_every_call_is_diffusers(name: str, shift: float, steps: int) -> None:
    scheduler = diffusers_scheduler(name, steps, shift)
    made = updates(manifest(name, shift), steps, 1, 16, 16, 1)
    assert [float(update.timestep[0]) for update in made] == scheduler.timesteps.tolist()
    off = differences(scheduler, made)
    assert max(off) <= 1e-5, (steps, off.index(max(off)), max(off))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", ["unipc", "euler"])
def test_every_call_is_diffusers(name: str, shift: float) -> None:
    for steps in (*range(2, 21), 30, 40, 50, 85, 100):
        assert_every_call_is_diffusers(name, shift, steps)


@pytest.mark.slow
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", ["unipc", "euler"])
def test_every_call_is_diffusers_at_every_number_of_steps(name: str, shift: float) -> None:
    for steps in range(2, 101):
        assert_every_call_is_diffusers(name, shift, steps)


def test_timesteps_that_rounding_makes_equal_are_calls_of_their_own() -> None:
    """From 85 steps on, a shift of 12 brings the first noise levels so close that their whole timesteps repeat."""
    for steps in (85, 90, 100):
        timesteps = [float(update.timestep[0]) for update in updates(manifest("unipc", 12.0), steps, 1, 16, 16, 1)]
        assert len(timesteps) == steps > len(set(timesteps))
        assert_every_call_is_diffusers("unipc", 12.0, steps)


def test_a_velocity_that_leads_to_the_data_has_the_other_sign() -> None:
    for name in ("rflow", "euler", "unipc"):
        to_noise, to_data = (
            updates(manifest(name, 3.0, velocity=direction), 5, 2, 16, 16, 1) for direction in ("to-noise", "to-data")
        )
        latents, velocity = np.random.default_rng(0).standard_normal((2, 2, 3)).astype(np.float32)
        histories = np.zeros((2, len(to_noise[0].weights), 2, 3), np.float32)
        for one, other in zip(to_noise, to_data, strict=True):
            c, d = (values[:, None] for values in one.entry())
            e, f = (values[:, None] for values in other.entry())
            histories[0, one.slot], histories[1, other.slot] = c * latents + d * velocity, e * latents - f * velocity
            both = [
                update.scale[:, None] * latents + (update.weights[:, :, None] * history).sum(0)
                for update, history in zip((one, other), histories, strict=True)
            ]
            np.testing.assert_array_equal(*both)


def spread(sigma: float) -> float:
    """Return the deviation of latents whose data are normal numbers of deviation 1/2."""
    return math.sqrt((1 - sigma) ** 2 / 4 + sigma**2)


def error(name: str, steps: int) -> float:
    """Return the error of the latent that reaches sigma 0.2 from 0.9, whose velocity is known."""
    sigmas = np.linspace(0.9, 0.2, steps + 1)
    made: Iterator[Update] = (unipc if name == "unipc" else euler)(sigmas, 1, -1.0)
    z, history = np.ones(1), np.zeros((HISTORY, 1))
    for sigma, update in zip(sigmas, made, strict=False):
        velocity = z * (sigma - (1 - sigma) / 4) / spread(sigma) ** 2
        c, d = update.entry()
        history[update.slot] = c * z + d * velocity
        z = update.scale * z + (update.weights * history[: len(update.weights)]).sum(0)
    return abs(float(z[0]) / (spread(0.2) / spread(0.9)) - 1)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("unipc", 2)])
def test_measured_order(name: str, order: int) -> None:
    errors = [error(name, steps) for steps in (10, 20, 40)]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(found > order - 0.3 for found in orders), (errors, orders)


def test_a_history_of_velocities_is_the_default() -> None:
    one = np.ones(2, np.float32)
    assert Update(one, 0, one, one[None]).keeps_velocity
    assert Update(one, 0, one, one[None], 0 * one, one).keeps_velocity
    assert not Update(one, 0, one, one[None], one, one).keeps_velocity
    assert not Update(one, 0, one, one[None], 0 * one, np.array([1, 2], np.float32)).keeps_velocity


@pytest.mark.parametrize("name", ["rflow", "euler", "unipc"])
def test_the_sizes_shift_is_every_flow_samplers(name: str) -> None:
    """Open-Sora's timesteps depend on the size; its samplers end at the data, with timesteps that are not rounded."""
    own = describe(OpenSoraConfig(), None).sampler
    bundle = fake_model.manifest().model_copy(update={"sampler": own})
    small, large = (updates(bundle, 10, 1, *size, 51, sampler=name) for size in ((144, 256), (720, 1280)))
    middle = [float(made[5].timestep[0]) for made in (small, large)]
    assert middle[0] < middle[1]
    for made in (small, large):
        timesteps = [float(update.timestep[0]) for update in made]
        assert timesteps == sorted(set(timesteps), reverse=True)
        assert 999.9 < timesteps[0] < 1000.1
        # data of 3 and noise of -1 are on a straight line, so that any sampler finds the data
        z, history = -np.ones(1), np.zeros((HISTORY, 1))
        for update in made:
            c, d = update.entry()
            history[update.slot] = c * z + d * 4.0
            z = update.scale * z + (update.weights * history[: len(update.weights)]).sum(0)
        assert z[0] == pytest.approx(3, rel=1e-5)


def test_a_sampler_must_fit_what_the_model_predicts() -> None:
    flow, noise = (manifest(name, 3.0) for name in ("unipc", "ddim"))
    assert samplers_of(flow) == ("rflow", "euler", "unipc")
    assert samplers_of(noise) == ("ddim", "pndm")
    with pytest.raises(InputError, match="sampler unipc is not possible with this model; choose one of ddim, pndm"):
        updates(noise, 5, 1, 16, 16, 1, sampler="unipc")
    with pytest.raises(InputError, match=r"sampler heun is not possible .*rflow, euler, unipc"):
        updates(flow, 5, 1, 16, 16, 1, sampler="heun")


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [4, 1000])
def test_updates_are_finite_and_alike_for_all_samples(name: str, steps: int) -> None:
    for update in updates(manifest(name, 5.0), steps, 3, 16, 16, 1):
        for values in (update.timestep, update.scale, update.weights, *update.entry()):
            assert values.dtype == np.float32
            assert np.isfinite(values).all()
            assert (values == values[..., :1]).all()


@pytest.mark.parametrize("granularity", ["stack", "model"])
def test_the_loop_takes_predictions_of_the_data_into_the_history(tmp_path: Path, granularity: Any) -> None:
    """One graph more a call, and the latents are diffusers', call by call, on the velocities that the model gave."""
    scheduler, steps = diffusers_scheduler("unipc", 7, 3.0), 7
    velocities: list[Any] = []

    def guide(given: Any) -> Any:
        velocities.append(run_guide(given)["velocity"])
        return {"velocity": velocities[-1]}

    pipeline, log = fake_pipeline(
        tmp_path / "bundle", {**functions(), "guide": guide}, sampler=manifest("unipc", 3.0).sampler
    )
    result = pipeline.generate(request(steps=steps, keep_calls=True, granularity=granularity))
    assert (log.count("combine"), log.count("guide")) == (2 * steps, steps)
    assert [call.timestep for call in result.trace.calls] == scheduler.timesteps.tolist()
    theirs = torch.from_numpy(result.calls[0])
    for velocity, timestep, mine in zip(
        velocities, scheduler.timesteps, [*result.calls[1:], result.latents], strict=True
    ):
        theirs = scheduler.step(torch.from_numpy(velocity), timestep, theirs).prev_sample
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=0, atol=1e-5 * float(theirs.abs().max()))
