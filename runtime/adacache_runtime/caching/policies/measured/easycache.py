"""EasyCache (arXiv 2507.02860): reuse while the latents, and by a measured factor the output, have changed little.

What is kept is the difference between the whole model's output and its input, v - x, so a reused call runs no part of
the model. The rule sees latents and velocities only, guidance included.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from adacache_runtime.caching.policies.measured.numbers import ratio, ratios, worst
from adacache_runtime.caching.policy import (
    LATENTS,
    VELOCITY,
    Context,
    Decision,
    Measure,
    Measurement,
    Needs,
    Observation,
    Run,
)


@dataclass(frozen=True)
class EasyCacheState:
    """EasyCache between two calls. Tuples have a number for each unit.

    Attributes:
        factor: K, mean |v - v of the call before| over mean |x - x of the call before| at the last computed call; NaN
            before there is one.
        input_change: sum |x - x of the call before| of the newest call.
        output: sum |v| of the last call.
        estimate: estimate of the output's relative change since the last computed call.
        computed: whether the newest call is computed.
    """

    factor: tuple[float, ...]
    input_change: tuple[float, ...]
    output: tuple[float, ...]
    estimate: tuple[float, ...]
    computed: bool = False


class EasyCache(BaseModel):
    """Compute the first two calls and the last one, and those at which the estimate reaches the threshold.

    The estimate is the sum of K mean |dx| / mean |v of the call before| over the calls since the last computed one.

    Attributes:
        threshold: tau, 0.025 to 0.05 in the paper.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["easycache"] = "easycache"
    threshold: float = Field(gt=0)

    @property
    def needs(self) -> Needs:
        output = Measure(VELOCITY, calls="all", signals=("change", "new_magnitude"))
        return Needs(measures=(Measure(LATENTS, calls="all"), output), granularity="model")

    def bounds(self) -> tuple["EasyCache", "EasyCache"]:
        """Return the policies that no estimate makes compute a call, and that every estimate does."""
        fewest, most = (self.model_copy(update={"threshold": value}) for value in (math.inf, -math.inf))
        return fewest, most

    def start(self, run: Run) -> EasyCacheState:
        unknown = (math.nan,) * run.units
        return EasyCacheState(unknown, unknown, unknown, (0.0,) * run.units)

    def observe(
        self, state: EasyCacheState, context: Context, measurements: Sequence[Measurement]
    ) -> tuple[Observation, EasyCacheState]:
        (seen,) = measurements
        if seen.site == LATENTS:
            grown = zip(state.estimate, state.factor, seen["change"], state.output, strict=True)
            estimate = tuple(before + factor * ratio(change, output) for before, factor, change, output in grown)
            return {"metric": worst(estimate)}, replace(state, input_change=seen["change"], estimate=estimate)
        state = replace(state, output=seen["new_magnitude"])
        if state.computed:
            state = replace(state, factor=ratios(seen["change"], state.input_change))
        return {}, state

    def decide(self, state: EasyCacheState, context: Context) -> tuple[Decision, EasyCacheState]:
        ends = context.call in (1, 2, context.run.calls)
        near = all(estimate < self.threshold for estimate in state.estimate)  # NaN is far
        compute = ends or context.forced or not near
        estimate = (0.0,) * context.run.units if compute else state.estimate
        return Decision((compute,) * context.run.groups), replace(state, computed=compute, estimate=estimate)
