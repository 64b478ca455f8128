"""Means over videos, with what the choice of prompts leaves open."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
SEED = 0
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean, and its 95 % confidence interval; None with fewer than two prompts."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def margin(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def estimate(prompts: Sequence[Sequence[float]]) -> Estimate | None:
    """The mean of all values, and the percentile bootstrap over prompts.

    Seeds of one prompt are not independent of each other, so whole prompts are drawn. The same values give the same
    interval. With few prompts it is narrower than it should be.

    Args:
        prompts: a prompt each, its values of all seeds; those without any do not count.

    Returns:
        None where there are no values.
    """
    counted = [values for values in prompts if values]
    if not counted:
        return None
    sums = np.array([sum(values) for values in counted], np.float64)
    counts = np.array([len(values) for values in counted], np.float64)
    mean = float(sums.sum() / counts.sum())
    if len(counted) < 2:
        return Estimate(mean)
    drawn = np.random.default_rng(SEED).integers(len(counted), size=(RESAMPLES, len(counted)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    tail = 50 * (1 - CONFIDENCE)  # per cent, on each side
    low, high = np.percentile(means, (tail, 100 - tail)).tolist()
    return Estimate(mean, low, high)
