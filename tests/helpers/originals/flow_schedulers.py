"""The samplers of a flow beside diffusers' schedulers, call by call."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import Manifest, SamplerDefaults
from adacache_runtime.samplers.update import Update
from tests.helpers.model import fake_model


def called(scheduler: Any, steps: int) -> Any:
    """Bring a scheduler of diffusers into the state in which a pipeline calls it."""
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    return scheduler


def manifest(name: Any, shift: float, **settings: Any) -> Manifest:
    """Return the fake model's manifest with a sampler of diffusers' conventions."""
    sampler = SamplerDefaults(
        name=name, steps=8, guidance=2.0, timestep_shift=shift, velocity="to-noise", whole_timesteps=True
    )
    return fake_model.manifest().model_copy(update={"sampler": sampler.model_copy(update=settings)})


def moved(update: Update, latents: Any, velocity: Any, history: NDArray[np.float32]) -> Any:
    """Return the next latents (1, ...), all in float32."""
    c, d = update.entry()
    history[update.slot] = c * latents + d * velocity
    return update.scale * latents + (update.weights[:, :, None] * history).sum(0)


def differences(scheduler: Any, made: Sequence[Update]) -> list[float]:
    """Return for each call how far the latents after it are apart, relative to their norm.

    The prediction is the velocity from fixed data, disturbed, so that latents stay as large as they are in use.
    """
    random = np.random.default_rng(len(made))
    data, mine = random.standard_normal((2, 1, 64)).astype(np.float32)
    theirs = torch.from_numpy(mine)
    history = np.zeros((len(made[0].weights), *mine.shape), np.float32)
    found = []
    for call, update in enumerate(made):
        velocity = (mine - data) / float(scheduler.sigmas[call]) + 0.3 * random.standard_normal(mine.shape)
        velocity = velocity.astype(np.float32)
        mine = moved(update, mine, velocity, history)
        assert mine.dtype == np.float32
        theirs = scheduler.step(torch.from_numpy(velocity), scheduler.timesteps[call], theirs).prev_sample
        found.append(float(np.linalg.norm(mine - theirs.numpy()) / np.linalg.norm(theirs.numpy())))
    return found
