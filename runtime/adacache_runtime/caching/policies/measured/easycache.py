"""EasyCache (arXiv 2507.02860): reuse while the latents, and by a measured factor the output, have changed little.

What is kept is the difference between the whole model's output and its input, v - x, so a reused call runs no part of
the model. The rule sees latents and velocities only: those of guidance, as in the paper, or as in its authors' code
those of the conditional branch, which decides for both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from adacache_runtime.caching.policies.measured.numbers import ratio, ratios, worst
from adacache_runtime.caching.policy import (
    CONDITIONAL_VELOCITY,
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
        factor: K, mean |v - earlier v| over mean |x - earlier x| at the last computed call; NaN before there is one.
        input_change: sum |x - x of the call before| of the newest call.
        output: sum |v| of the last call whose v is measured.
        estimate: estimate of the output's relative change since the last computed call.
        computed: whether the newest call is computed.
    """

    factor: tuple[float, ...]
    input_change: tuple[float, ...]
    output: tuple[float, ...]
    estimate: tuple[float, ...]
    computed: bool = False


class EasyCache(BaseModel):
    """Compute the first two calls and the last ones, and those at which the estimate reaches the threshold.

    The estimate is the sum of K mean |dx| / mean |v| over the calls since the last computed one, dx being the change of
    the latents since the call before.

    Attributes:
        threshold: tau, 0.025 to 0.05 in the paper.
        output: what v is. ``velocity`` is that of guidance, of all calls: K and the estimate refer to the call before.
            ``conditional_velocity`` is that of the conditional branch, of computed calls: they refer to the last of
            these.
        last: number of calls at the end that are always computed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["easycache"] = "easycache"
    threshold: float = Field(gt=0)
    output: Literal["velocity", "conditional_velocity"] = "velocity"
    last: int = Field(1, ge=0)

    @property
    def needs(self) -> Needs:
        since_before, signals = Measure(LATENTS, calls="all"), ("change", "new_magnitude")
        if self.output == VELOCITY:
            return Needs(measures=(since_before, Measure(VELOCITY, "all", signals=signals)), granularity="model")
        since_computed = (Measure(LATENTS), Measure(CONDITIONAL_VELOCITY, signals=signals))
        return Needs(measures=(since_before, *since_computed), granularity="model")

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
        *latents, seen = measurements  # an output of computed calls comes with the latents' change since the last one
        if seen.site == LATENTS:
            grown = zip(state.estimate, state.factor, seen["change"], state.output, strict=True)
            estimate = tuple(before + factor * ratio(change, output) for before, factor, change, output in grown)
            return {"metric": worst(estimate)}, replace(state, input_change=seen["change"], estimate=estimate)
        input_change = latents[0]["change"] if latents else state.input_change
        state = replace(state, output=seen["new_magnitude"])
        if state.computed:
            state = replace(state, factor=ratios(seen["change"], input_change))
        return {}, state

    def decide(self, state: EasyCacheState, context: Context) -> tuple[Decision, EasyCacheState]:
        ends = context.call <= 2 or context.call > context.run.calls - self.last
        near = all(estimate < self.threshold for estimate in state.estimate)  # NaN is far
        compute = ends or context.forced or not near
        estimate = (0.0,) * context.run.units if compute else state.estimate
        return Decision((compute,) * context.run.groups), replace(state, computed=compute, estimate=estimate)
