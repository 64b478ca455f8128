"""The noise schedule of models that predict noise, trained on 1000 timesteps with betas that rise linearly.

abar_t is the share of the signal's variance that is left at timestep t.
"""

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import OutOfRangeError
from adacache_runtime.samplers.update import TRAIN_TIMESTEPS

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
