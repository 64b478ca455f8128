"""TeaCache (arXiv 2411.19108): reuses while the modulated input of the first block has changed little.

The input is known before anything is computed. A polynomial, fitted to the model, turns its change into an estimate of
the output's change, which adds up from call to call.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from adacache_runtime.caching.policy import Context, Decision, Measure, Measurement, Needs, Observation, Run

MODULATED = "spatial.0.modulated"  # the probe


@dataclass(frozen=True)
class TeaCacheState:
    """``estimate`` of the output's change since the last computed call, a unit each."""

    estimate: tuple[float, ...]


class TeaCache(BaseModel):
    """Computes the first and the last call, and those at which the estimate reaches the threshold.

    Attributes:
        coefficients: of the polynomial, the highest power first.
        threshold: of the estimate, relative L1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["teacache"] = "teacache"
    coefficients: tuple[float, ...] = Field(min_length=1)
    threshold: float = Field(gt=0)

    @property
    def needs(self) -> Needs:
        return Needs(measures=(Measure(MODULATED, calls="all"),))

    def start(self, run: Run) -> TeaCacheState:
        return TeaCacheState((0.0,) * run.units)

    def observe(
        self, state: TeaCacheState, context: Context, measurements: Sequence[Measurement]
    ) -> tuple[Observation, TeaCacheState]:
        (seen,) = measurements
        distances = [
            change / magnitude if magnitude else math.inf
            for change, magnitude in zip(seen.change, seen.magnitude, strict=True)
        ]
        estimate = tuple(
            before + self.rescaled(distance) for before, distance in zip(state.estimate, distances, strict=True)
        )
        worst = max(range(len(estimate)), key=lambda unit: _nan_first(estimate[unit]))
        return Observation(distance=distances[worst], metric=estimate[worst]), TeaCacheState(estimate)

    def decide(self, state: TeaCacheState, context: Context) -> tuple[Decision, TeaCacheState]:
        ends = context.call in (1, context.run.calls)
        compute = ends or context.forced or not all(estimate < self.threshold for estimate in state.estimate)
        decision = Decision((compute,) * context.run.groups)
        return decision, replace(state, estimate=(0.0,) * context.run.units) if compute else state

    def rescaled(self, distance: float) -> float:
        """The polynomial at a distance."""
        value = 0.0
        for coefficient in self.coefficients:
            value = value * distance + coefficient
        return value


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value
