"""Euler steps of a flow (arXiv 2209.03003) on the noise levels of diffusers' ``FlowMatchEulerDiscreteScheduler``."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from adacache_runtime.samplers.flow import LOWEST, shifted
from adacache_runtime.samplers.update import TRAIN_TIMESTEPS, Update, uniform_update

HISTORY = 1  # velocities that an update uses


def euler_sigmas(steps: int, shift: float = 1.0) -> NDArray[np.float32]:
    """Return noise levels (steps + 1,), which fall from 1 to 0.

    As in the original, the last level but one is 1/1000, shifted twice, and the others are evenly spaced before the
    second shift.
    """
    highest, lowest = (float(shifted(np.float32(level), np.float32(shift))) for level in (1, LOWEST))
    even = np.linspace(highest * TRAIN_TIMESTEPS, lowest * TRAIN_TIMESTEPS, steps) / TRAIN_TIMESTEPS
    return np.append(shifted(even, np.float64(shift)), 0).astype(np.float32)


def euler(sigmas: Sequence[float] | NDArray[np.float32], samples: int, sign: float) -> Iterator[Update]:
    """Yield the updates z' = z + sign (sigma_i - sigma_(i+1)) v.

    Args:
        sigmas: (steps + 1,) noise levels, which fall.
        samples: number of prompts.
        sign: 1 where the velocity leads to the data, -1 where it leads to the noise.
    """
    levels = np.asarray(sigmas, np.float32)
    for here, there in itertools.pairwise(levels):
        timestep = here * np.float32(TRAIN_TIMESTEPS)
        yield uniform_update(float(timestep), 0, 1.0, {0: sign * float(here - there)}, HISTORY, samples)
