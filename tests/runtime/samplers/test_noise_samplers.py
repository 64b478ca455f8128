"""DDIM and PNDM: the original's trajectories call by call, and their order on a problem with a known solution."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from numpy.typing import NDArray

from adacache_engines.errors import OutOfRangeError
from adacache_runtime.samplers.ddim import HISTORY as DDIM_HISTORY
from adacache_runtime.samplers.ddim import ddim
from adacache_runtime.samplers.noise_schedule import signal_variances
from adacache_runtime.samplers.pndm import HISTORY as PNDM_HISTORY
from adacache_runtime.samplers.pndm import pndm
from adacache_runtime.samplers.update import Update
from tests.helpers.originals.reference import arrays

LATTE, PLAN = (Path(__file__).parents[3] / "tests" / "data" / name for name in ("latte", "open-sora-plan"))
Sampler = Callable[[int, int], Iterator[Update]]
RUNS = {
    "ddim": (ddim, DDIM_HISTORY, LATTE / "sample_ddim50.npz", LATTE / "inputs.npz", 50),
    "pndm": (pndm, PNDM_HISTORY, PLAN / "sample_pndm20.npz", PLAN / "inputs.npz", 20),
}


def run(
    updates: Iterator[Update], history: int, latents: NDArray[np.float64], predict: Callable[..., NDArray[np.float64]]
) -> list[NDArray[np.float64]]:
    """Latents after each call; ``predict`` gets the call's number from 0, the latents and the timestep."""
    remembered = np.full((history, *latents.shape), np.nan)
    after = []
    for call, update in enumerate(updates):
        remembered[update.slot] = predict(call, latents, float(update.timestep[0]))
        used = [slot for slot in range(history) if update.weights[slot, 0]]
        latents = update.scale[0] * latents + sum(update.weights[slot, 0] * remembered[slot] for slot in used)
        after.append(latents)
    return after


@pytest.mark.parametrize("name", RUNS)
def test_every_call_is_the_originals(name: str) -> None:
    sampler, history, sampled, inputs, steps = RUNS[name]
    expected, noise = arrays(sampled), arrays(inputs)["noise"]
    timesteps = [int(update.timestep[0]) for update in sampler(steps, 1)]
    count = len(timesteps)
    assert timesteps == expected["timesteps"][:count].tolist()
    after = run(sampler(steps, 1), history, noise.astype(np.float64), lambda call, _z, _t: expected["eps"][call])
    assert len(after) == count
    for mine, original in zip(after, expected["z"], strict=False):
        assert np.linalg.norm(mine - original) <= 1e-5 * np.linalg.norm(original)


@pytest.mark.parametrize("steps", [4, 5, 7, 33, 40, 150, 333])
@pytest.mark.parametrize("name", RUNS)
def test_any_number_of_steps_is_as_in_diffusers(name: str, steps: int) -> None:
    """The originals use diffusers' schedulers, with these arguments."""
    theirs = {"ddim": DDIMScheduler(clip_sample=False), "pndm": PNDMScheduler()}[name]
    theirs.set_timesteps(steps)
    sampler, history, *_ = RUNS[name]
    updates = list(sampler(steps, 1) if name == "ddim" else pndm(steps, 1, idle_call=True))
    assert [int(update.timestep[0]) for update in updates] == theirs.timesteps.tolist()
    random = np.random.default_rng(steps)
    latents, noise = random.standard_normal((2, 3)), random.standard_normal((len(updates), 2, 3))
    mine = run(iter(updates), history, latents, lambda call, _z, _t: noise[call])
    expected = torch.from_numpy(latents)
    for call, timestep in enumerate(theirs.timesteps):
        expected = theirs.step(torch.from_numpy(noise[call]), timestep, expected).prev_sample
        assert np.linalg.norm(mine[call] - expected.numpy()) <= 1e-5 * np.linalg.norm(expected.numpy())


def test_the_call_that_is_left_out_changes_nothing() -> None:
    expected = arrays(RUNS["pndm"][2])
    assert len(expected["z"]) == len(list(pndm(20, 1))) + 1
    np.testing.assert_array_equal(expected["z"][-1], expected["z"][-2])


def test_the_published_schedules() -> None:
    assert [int(update.timestep[0]) for update in ddim(50, 1)] == list(range(980, -1, -20))
    calls = [int(update.timestep[0]) for update in pndm(150, 1)]
    assert calls[:12] == [894, 891, 891, 888, 888, 885, 885, 882, 882, 879, 879, 876]
    assert calls[12:] == list(range(876, 0, -6))


MIDDLE = 200  # timestep; nearer to 0 the noise falls as a root, which no order survives


def error(sampler: Sampler, history: int, steps: int) -> float:
    """Return the error of the latent that reaches ``MIDDLE``.

    The data are normal numbers of deviation 1/2, so that the noise in a latent is known:
    e(z, t) = z sqrt(1 - abar) / (1 - abar + abar / 4), and z grows with that denominator's root.
    """
    variances = signal_variances().astype(np.float64)

    def spread(timestep: float) -> float:
        share = float(variances[int(timestep)])
        return math.sqrt(1 - share + share / 4)

    def predict(_call: int, latents: NDArray[np.float64], timestep: float) -> NDArray[np.float64]:
        return latents * math.sqrt(1 - float(variances[int(timestep)])) / spread(timestep) ** 2

    timesteps = [float(update.timestep[0]) for update in sampler(steps, 1)]
    after = run(sampler(steps, 1), history, np.ones(1), predict)
    reached = float(after[timesteps.index(MIDDLE) - 1][0])
    return abs(reached / (spread(MIDDLE) / spread(timesteps[0])) - 1)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("pndm", 2)])
def test_order(name: str, order: int) -> None:
    sampler, history, *_ = RUNS[name]
    errors = [error(sampler, history, steps) for steps in (50, 100, 200)]
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(slope > order - 0.3 for slope in slopes), (errors, slopes)


@pytest.mark.parametrize(("sampler", "history"), [(ddim, DDIM_HISTORY), (pndm, PNDM_HISTORY)])
@pytest.mark.parametrize("steps", [4, 7, 33, 1000])
def test_any_number_of_steps(sampler: Sampler, history: int, steps: int) -> None:
    updates = list(sampler(steps, 3))
    timesteps = [float(update.timestep[0]) for update in updates]
    assert timesteps == sorted(timesteps, reverse=True)
    written: set[int] = set()
    for update in updates:
        written.add(update.slot)
        assert update.weights.shape == (history, 3)
        assert {slot for slot in range(history) if update.weights[slot].any()} <= written
        assert all((part == part[..., :1]).all() for part in (update.timestep, update.scale, update.weights))


@pytest.mark.parametrize(("sampler", "steps"), [(ddim, 0), (ddim, 1001), (pndm, 3), (pndm, 1001)])
def test_steps_that_cannot_be(sampler: Sampler, steps: int) -> None:
    with pytest.raises(OutOfRangeError, match=f"{steps} steps are not possible"):
        list(sampler(steps, 1))
