"""TeaCache (arXiv 2411.19108): reuse while the modulated input of the first block has changed little.

Its authors' code for some models measures the embedding of the timestep instead, or the modulation that is made of it.
Either is known before anything is computed. A polynomial, fitted to the model, turns its change into an estimate of the
output's change, which adds up from call to call. That code counts each guidance branch by itself; what it measures on
these models is the same for both, so that they decide alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from adacache_runtime.caching.policies.measured.numbers import nan_as_largest, ratios
from adacache_runtime.caching.policy import (
    BLOCK_INPUT,
    Context,
    Decision,
    Measure,
    Measurement,
    Needs,
    Observation,
    Run,
)


@dataclass(frozen=True)
class TeaCacheState:
    """TeaCache between two calls.

    Attributes:
        estimate: estimate of the output's change since the last computed call, a value for each unit.
    """

    estimate: tuple[float, ...]


class TeaCache(BaseModel):
    """Compute the first and the last calls, and those at which the estimate reaches the threshold.

    Attributes:
        coefficients: coefficients of the polynomial, the highest power first.
        threshold: threshold of the estimate, relative L1.
        probe: tensor that is measured, by its role.
        last: number of calls at the end that are always computed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["teacache"] = "teacache"
    coefficients: tuple[float, ...] = Field(min_length=1)
    threshold: float = Field(gt=0)
    probe: Literal["block_input", "time", "time_modulation"] = BLOCK_INPUT
    last: int = Field(1, ge=0)

    @property
    def needs(self) -> Needs:
        return Needs(measures=(Measure(self.probe, calls="all"),))

    def bounds(self) -> tuple["TeaCache", "TeaCache"]:
        """Return the policies that no estimate makes compute a call, and that every estimate does."""
        fewest, most = (self.model_copy(update={"threshold": value}) for value in (math.inf, -math.inf))
        return fewest, most

    def start(self, run: Run) -> TeaCacheState:
        return TeaCacheState((0.0,) * run.units)

    def observe(
        self, state: TeaCacheState, context: Context, measurements: Sequence[Measurement]
    ) -> tuple[Observation, TeaCacheState]:
        (seen,) = measurements
        distances = ratios(seen["change"], seen["magnitude"], otherwise=math.inf)
        estimate = tuple(
            before + self.rescaled(distance) for before, distance in zip(state.estimate, distances, strict=True)
        )
        cautious = max(range(len(estimate)), key=lambda unit: nan_as_largest(estimate[unit]))
        return {"distance": distances[cautious], "metric": estimate[cautious]}, TeaCacheState(estimate)

    def decide(self, state: TeaCacheState, context: Context) -> tuple[Decision, TeaCacheState]:
        ends = context.call == 1 or context.call > context.run.calls - self.last
        compute = ends or context.forced or not all(estimate < self.threshold for estimate in state.estimate)
        decision = Decision((compute,) * context.run.groups)
        return decision, replace(state, estimate=(0.0,) * context.run.units) if compute else state

    def rescaled(self, distance: float) -> float:
        """Return the polynomial's value at a distance."""
        value = 0.0
        for coefficient in self.coefficients:
            value = value * distance + coefficient
        return value
