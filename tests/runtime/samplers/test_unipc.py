"""UniPC can be written as linear updates of a short history: checked against diffusers' scheduler, and in the loop."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from adacache_runtime.samplers.registry import SAMPLERS, Sampler
from adacache_runtime.samplers.update import Update
from tests.helpers.fake_model import fake_pipeline, functions, request, run_guide
from tests.helpers.unipc import HISTORY, unipc


def schedule(steps: int) -> UniPCMultistepScheduler:
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2, solver_type="bh2"
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [2, 3, 5, 20, 50])
@pytest.mark.parametrize(("precision", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_unipc_is_a_sequence_of_linear_updates(steps: int, precision: type, tolerance: float) -> None:
    """On random velocities, so that nothing is forgiven; the last of the latents' differences is what counts."""
    scheduler = schedule(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    random = np.random.default_rng(steps)
    velocities = random.standard_normal((steps, 3, 4)).astype(precision)
    mine = random.standard_normal((3, 4)).astype(precision)
    theirs = torch.from_numpy(mine).double()
    history = np.zeros((HISTORY, 3, 4), precision)
    for call, update in enumerate(unipc(scheduler.sigmas.numpy())):
        assert not update.keeps_velocity
        c, d = (values.astype(precision) for values in update.entry())
        history[update.slot] = c * mine + d * velocities[call]
        scale, weights = update.scale.astype(precision), update.weights.astype(precision)
        mine = scale * mine + (weights[:, :, None] * history).sum(0)
        assert mine.dtype == precision
        velocity = torch.from_numpy(velocities[call]).double()
        theirs = scheduler.step(velocity, scheduler.timesteps[call], theirs).prev_sample
        assert np.abs(mine - theirs.numpy()).max() <= tolerance * max(1, np.abs(theirs.numpy()).max())


def test_a_history_of_velocities_is_the_default() -> None:
    one = np.ones(2, np.float32)
    assert Update(one, 0, one, one[None]).keeps_velocity
    assert Update(one, 0, one, one[None], 0 * one, one).keeps_velocity
    assert not Update(one, 0, one, one[None], one, one).keeps_velocity
    assert not Update(one, 0, one, one[None], 0 * one, np.array([1, 2], np.float32)).keeps_velocity


def test_the_measured_order_is_two() -> None:
    """Data are normal numbers of deviation 1/2, so that a flow's velocity is known; from sigma 0.9 to 0.2."""

    def spread(sigma: float) -> float:
        return math.sqrt((1 - sigma) ** 2 / 4 + sigma**2)

    def error(steps: int) -> float:
        sigmas = np.linspace(0.9, 0.2, steps + 1)
        z, history = 1.0, np.zeros(HISTORY)
        for sigma, update in zip(sigmas, unipc(sigmas), strict=False):
            velocity = z * (sigma - (1 - sigma) / 4) / spread(sigma) ** 2
            c, d = (float(values[0]) for values in update.entry())
            history[update.slot] = c * z + d * velocity
            z = float(update.scale[0]) * z + float((update.weights[:, 0] * history).sum())
        return abs(z / (spread(0.2) / spread(0.9)) - 1)

    errors = [error(steps) for steps in (20, 40, 80)]
    assert all(math.log2(coarse / fine) > 1.7 for coarse, fine in itertools.pairwise(errors)), errors


@pytest.mark.parametrize("granularity", ["stack", "model"])
def test_the_loop_takes_predictions_of_the_data_into_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granularity: Any
) -> None:
    """One graph more a call, and the latents are diffusers', call by call, on the velocities that the model gave."""
    scheduler, steps = schedule(7), 7
    sigmas = scheduler.sigmas.double().numpy()

    def updates(_manifest: Any, asked: Any) -> Any:
        for update in unipc(sigmas):
            parts = (update.scale, update.weights, *update.entry())
            scale, weights, c, d = (np.repeat(part, asked.samples, axis=-1).astype(np.float32) for part in parts)
            yield Update(np.repeat(update.timestep, asked.samples), update.slot, scale, weights, c, d)

    monkeypatch.setitem(SAMPLERS, "rflow", Sampler(updates))
    velocities: list[Any] = []

    def guide(given: Any) -> Any:
        velocities.append(run_guide(given)["velocity"])
        return {"velocity": velocities[-1]}

    pipeline, log = fake_pipeline(tmp_path / "bundle", {**functions(), "guide": guide})
    result = pipeline.generate(request(steps=steps, keep_calls=True, granularity=granularity))
    assert (log.count("combine"), log.count("guide")) == (2 * steps, steps)
    theirs = torch.from_numpy(result.calls[0])
    for velocity, timestep, mine in zip(
        velocities, scheduler.timesteps, [*result.calls[1:], result.latents], strict=True
    ):
        theirs = scheduler.step(torch.from_numpy(velocity), timestep, theirs).prev_sample
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=0, atol=1e-5 * float(theirs.abs().max()))
