"""MagCache (arXiv 2506.09045): reuses while the magnitude of the residual is known to change little.

How residuals' magnitudes fall from call to call hardly depends on the content, so their ratios are measured once for
a model (``adacache-calibrate``), and the schedule follows from them.
"""

from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from adacache_runtime.caching.policies.scheduled import Schedule, Scheduled, uniform
from adacache_runtime.caching.policy import Run


class MagCache(Scheduled):
    """Reuse until the known change of the residual's magnitude adds up to a threshold.

    While calls reuse, s is the product of their ratios, and the error is the sum of |1 - s|. A call is computed where
    the error would pass the threshold, or the number of reuses in a row its limit; both then start anew.

    Attributes:
        ratios: for each call, mean |r_k| over mean |r_(k-1)| of the stack's residual r; 1 for the first call, which has
            none before it. For another number of calls they are interpolated.
        threshold: largest error.
        max_reuses: largest number of reuses in a row.
        warm_up: share of the calls, from the first one on, that are always computed.
    """

    name: Literal["magcache"] = "magcache"
    ratios: tuple[float, ...] = Field(min_length=2)
    threshold: float = Field(0.12, ge=0)
    max_reuses: int = Field(3, ge=0)
    warm_up: float = Field(0.2, ge=0, le=1)

    @field_validator("ratios")
    @classmethod
    def _positive(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if min(ratios) <= 0:
            raise ValueError("ratios of magnitudes are more than 0")
        return ratios

    def start(self, run: Run) -> Schedule:
        places = np.linspace(0, 1, run.calls)
        ratios = np.interp(places, np.linspace(0, 1, len(self.ratios)), self.ratios).tolist()
        first = max(1, int(self.warm_up * run.calls))  # that may reuse, counted from 0
        computed = [True] * first
        product, error, reuses = 1.0, 0.0, 0
        for ratio in ratios[first:]:
            product *= ratio
            error += abs(1 - product)
            reuses += 1
            computed.append(error > self.threshold or reuses > self.max_reuses)
            if computed[-1]:
                product, error, reuses = 1.0, 0.0, 0
        return uniform(computed[: run.calls], run)
