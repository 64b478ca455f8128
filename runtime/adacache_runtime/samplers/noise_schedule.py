"""The noise schedule of models that predict noise, trained on 1000 timesteps with betas that rise linearly.

abar_t is the share of the signal's variance that is left at timestep t.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import OutOfRangeError
from adacache_runtime.samplers.update import TRAIN_TIMESTEPS, Update

BETA_FIRST, BETA_LAST = 1e-4, 2e-2


def signal_variances() -> NDArray[np.float32]:
    """Return abar (1000,), with the roundings of float32 that the models were trained with."""
    betas = np.linspace(BETA_FIRST, BETA_LAST, TRAIN_TIMESTEPS, dtype=np.float32)
    return np.cumprod(np.float32(1) - betas, dtype=np.float64).astype(np.float32)


def timesteps_apart(steps: int, fewest: int) -> int:
    """Return the number of timesteps between two that are evaluated.

    Raises:
        OutOfRangeError: ``steps`` is less than ``fewest`` or more than 1000.
    """
    if not fewest <= steps <= TRAIN_TIMESTEPS:
        raise OutOfRangeError(f"{steps} steps are not possible with this sampler; choose {fewest} to {TRAIN_TIMESTEPS}")
    return TRAIN_TIMESTEPS // steps


def alike(timestep: int, slot: int, scale: float, weights: Mapping[int, float], history: int, samples: int) -> Update:
    """Return an update that has the same coefficients for all samples; ``weights`` are by slot of the history."""
    values = np.zeros((history, samples), np.float32)
    for place, weight in weights.items():
        values[place] = weight
    return Update(np.full(samples, timestep, np.float32), slot, np.full(samples, scale, np.float32), values)
