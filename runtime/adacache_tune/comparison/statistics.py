"""Means over videos, with confidence intervals for the choice of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
SEED = 0
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % confidence interval, which is None with fewer than two prompts."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def margin(self) -> float | None:
        """Return half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def estimate(prompts: Sequence[Sequence[float]]) -> Estimate | None:
    """Return the mean of all values, with an interval by the percentile bootstrap over prompts.

    Seeds of one prompt are not independent of each other, so whole prompts are drawn. The same values give the same
    interval. With few prompts it is narrower than it should be.

    Args:
        prompts: the values of all seeds, for each prompt; prompts without values do not count.

    Returns:
        The estimate; None where there are no values.
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
