"""DDIM without added noise, for models that predict noise (arXiv 2010.02502, eq. 12, sigma = 0)."""

import math
from collections.abc import Iterator

from adacache_runtime.samplers.noise_schedule import signal_variances, timesteps_apart
from adacache_runtime.samplers.update import Update, uniform_update

HISTORY = 1  # predictions that an update uses


def ddim(steps: int, samples: int) -> Iterator[Update]:
    """Yield the updates of DDIM, down to abar = 1.

    Timesteps are evenly spaced from 0 up ("leading"): 50 steps evaluate 980, 960, ..., 0.

    Raises:
        OutOfRangeError: ``steps`` is not 1 to 1000.
    """
    variances, ratio = signal_variances(), timesteps_apart(steps, 1)
    for step in range(steps - 1, -1, -1):
        here = float(variances[step * ratio])
        there = float(variances[(step - 1) * ratio]) if step else 1.0
        scale = math.sqrt(there / here)
        weights = {0: math.sqrt(1 - there) - scale * math.sqrt(1 - here)}
        yield uniform_update(step * ratio, 0, scale, weights, HISTORY, samples)
