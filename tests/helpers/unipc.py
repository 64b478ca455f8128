"""UniPC as linear updates of a short history.

The latents that enter a call are the predictor's; the corrector changes them once their own prediction is known. The
corrected latents are never stored: they follow linearly from the predictor's, which z' takes them back from.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adacache_runtime.samplers.update import TRAIN_TIMESTEPS, Update

HISTORY = 3
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """Latents as ``corrected`` times the last corrected latents and ``predictions`` (by age, the newest first)."""

    corrected: float
    predictions: tuple[float, ...]


def unipc(sigmas: Numbers) -> Iterator[Update]:
    """Yield the updates of UniPC of order 2 with B(h) = e^h - 1 (arXiv 2302.04867, alg. 1 to 4) for a flow.

    ``sigmas`` (steps + 1,) fall from noise to data, at which the last one is 0. The history holds predictions of the
    data, z - sigma v. As in diffusers, the first and the last step are of order 1, and coefficients are float64.
    """

    def half_log_snr(sigma: float) -> float:
        return math.inf if sigma == 0 else math.log((1 - sigma) / sigma)

    def step(index: int, order: int, corrects: bool) -> Linear:
        """Latents at ``index`` + 1 from the corrected ones at ``index``; a corrector knows their prediction, too."""
        here, there = sigmas[index], sigmas[index + 1]
        h = half_log_snr(there) - half_log_snr(here)
        grown = math.expm1(-h)
        share = there / here
        alpha = 1 - there
        # z = share z_0 - alpha (e^-h - 1) (m_0 + sum_k rho_k D_k), D_k = (m_k - m_0) / r_k
        phi = [grown / -h - 1 if math.isfinite(h) else -1.0]
        phi.append(phi[0] / -h - 1 / 2 if math.isfinite(h) else -0.5)
        b = [phi[0] / grown, 2 * phi[1] / grown]
        older = []
        if order == 2:
            older = [(half_log_snr(sigmas[index - 1]) - half_log_snr(here)) / h]
        if not corrects:
            rho = [0.5] * len(older)
            new: list[float] = []
        elif order == 1:
            rho, new = [], [0.5]
        else:
            matrix = np.array([[1.0, 1.0], [older[0], 1.0]])
            solved = np.linalg.solve(matrix, np.array(b))
            rho, new = [float(solved[0])], [float(solved[1])]
        push = -alpha * grown
        terms = [value / r for value, r in zip(rho, older, strict=True)]
        predictions = [push * (1 - sum(terms) - sum(new)), *(push * term for term in terms)]
        return Linear(share, tuple([push * value for value in new] + predictions))

    steps = len(sigmas) - 1
    predictor: Linear | None = None
    for index in range(steps):
        order = min(2, index + 1, steps - index)
        following = step(index, order, corrects=False)
        a, by_age = 1.0, [0.0] * HISTORY
        if predictor is not None:
            corrector = step(index - 1, min(2, index), corrects=True)  # by age from the prediction of this call
            # corrected z_i = c (z - p) / p_z + q, where z = p_z z_(i-1) + p is what entered
            a = corrector.corrected / predictor.corrected
            for age, weight in enumerate(corrector.predictions):
                by_age[age] += weight
            for age, weight in enumerate(predictor.predictions, 1):
                by_age[age] -= a * weight
        scale = following.corrected * a
        by_age = [following.corrected * weight for weight in by_age]
        for age, weight in enumerate(following.predictions):
            by_age[age] += weight
        slot = index % HISTORY
        weights = np.zeros((HISTORY, 1))
        for age, weight in enumerate(by_age):
            weights[(slot - age) % HISTORY] = weight
        one = np.ones(1)
        timestep = (sigmas[index : index + 1] * TRAIN_TIMESTEPS).astype(np.float32)
        coefficients: tuple[Numbers, ...] = (scale * one, weights, one, -sigmas[index] * one)
        yield Update(timestep, slot, *coefficients)  # type: ignore[arg-type]  # float64, for the comparison
        predictor = following
