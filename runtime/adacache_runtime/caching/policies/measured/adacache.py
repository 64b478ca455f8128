"""AdaCache with motion regularisation (arXiv 2411.02397), as its authors' code does it.

Where paper and code differ, the code counts: the distance is relative to the cached residual (eq. 4 has no
denominator), and the gradient of motion enters with its absolute value (eq. 9 is signed).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from adacache_runtime.caching.policies.measured.numbers import nan_as_largest, ratio
from adacache_runtime.caching.policy import (
    DEFAULT,
    Context,
    Decision,
    Measure,
    Measurement,
    Needs,
    Observation,
    Run,
    compact,
)
from adacache_runtime.caching.signals.signal import at_stride


class MoReg(BaseModel):
    """Motion regularisation (eq. 7 to 9): the more motion, the more computed steps.

    Attributes:
        strides: distances in frames over which motion is averaged.
        window: first and last step, counted from 1 and both included, in which motion counts.
        steps: number of steps of a run that the window is for; where a run has another number, the window is scaled.
            None = it is the same in all runs.
        h0: motion that leaves the metric as it is.
        exponent: exponent of motion / h0.
        gradient: factor of the change of motion.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    strides: tuple[int, ...] = Field((1,), min_length=1)
    window: tuple[int, int] = (4, 26)
    steps: int | None = Field(None, ge=1)
    h0: float = Field(0.385, gt=0)
    exponent: float = Field(8.0, ge=0)
    gradient: float = 10.0

    @field_validator("strides")
    @classmethod
    def _positive(cls, strides: tuple[int, ...]) -> tuple[int, ...]:
        if min(strides) < 1:
            raise ValueError("strides are at least 1 frame")
        return strides

    @field_validator("window")
    @classmethod
    def _ordered(cls, window: tuple[int, int]) -> tuple[int, int]:
        if window[0] > window[1]:
            raise ValueError("the first step of the window comes after its last one")
        return window

    def counts(self, step: int, steps: int) -> bool:
        """Return whether motion counts in a step, from 1, of a run of so many."""
        first, last = (
            self.window if self.steps is None else (1 + (end - 1) * steps // self.steps for end in self.window)
        )
        return first <= step <= last


@dataclass(frozen=True)
class AdaCacheState:
    """AdaCache between two calls, for one guidance branch or for all that decide alike.

    Attributes:
        computed: the last computed step, from 1; 0 = none yet.
        rate: steps from there to the next computed one.
        divisor: number of steps that the distance of the last computed one is divided by. As in the original this is
            the rate that was scheduled, also where one of the last two steps comes earlier; where a wrapper forced the
            step, it is the real gap.
        scores: last motion score at each site, a value for each unit.
    """

    computed: int
    rate: int
    divisor: int
    scores: dict[str, tuple[float, ...]]


States = tuple[AdaCacheState, ...]  # one for each guidance branch, or one for all


class AdaCache(BaseModel):
    """Compute a step ``rate`` steps after the last one; the smaller the residual's change, the larger the rate.

    The first step, the second (the rate is 1 at first) and the last ones are always computed.

    Attributes:
        codebook: pairs (threshold, rate) in rising order; the rate of the first threshold above the metric counts,
            else the last one.
        probe: sites that vote, their distances averaged in the order of execution; empty = the bundle's default ones.
        moreg: motion regularisation, or None.
        last: number of steps at the end that are always computed.
        by_branch: whether each guidance branch is measured and decided by itself; else all decide alike. Observations
            are those of the branch with the smallest rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["adacache"] = "adacache"
    codebook: tuple[tuple[float, int], ...] = Field(min_length=1)
    probe: tuple[str, ...] = ()
    moreg: MoReg | None = None
    last: int = Field(2, ge=0)
    by_branch: bool = False

    @field_validator("codebook")
    @classmethod
    def _rising(cls, codebook: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
        thresholds = [threshold for threshold, _ in codebook]
        if thresholds != sorted(thresholds):
            raise ValueError("thresholds must rise")
        if min(rate for _, rate in codebook) < 1:
            raise ValueError("rates are at least 1 step")
        return codebook

    @property
    def needs(self) -> Needs:
        signals, strides = (("change",), (1,)) if self.moreg is None else (("change", "motion"), self.moreg.strides)
        sites = self.probe or (DEFAULT,)
        measures = tuple(Measure(site, signals=signals, strides=strides) for site in sites)
        return Needs(measures=measures, by_branch=self.by_branch)

    def bounds(self) -> tuple["AdaCache", "AdaCache"]:
        """Return the policies that always take the largest rate, and the smallest."""
        rates = [rate for _, rate in self.codebook]
        fewest, most = (
            AdaCache(codebook=((1.0, rate),), last=self.last, by_branch=self.by_branch)
            for rate in (max(rates), min(rates))
        )
        return fewest, most

    def start(self, run: Run) -> States:
        return (AdaCacheState(computed=0, rate=1, divisor=1, scores={}),) * (len(run.branches) if self.by_branch else 1)

    def decide(self, state: States, context: Context) -> tuple[Decision, States]:
        decided = [self._decided(branch, context) for branch in state]
        rows = tuple((compute,) * context.run.groups for compute, _ in decided)
        return Decision(compact(rows)), tuple(branch for _, branch in decided)

    def _decided(self, state: AdaCacheState, context: Context) -> tuple[bool, AdaCacheState]:
        """Return whether the call is computed, and the next state."""
        call = context.call
        due = call in (1, state.computed + state.rate) or call > context.run.calls - self.last
        if not (due or context.forced):
            return False, state
        return True, replace(state, computed=call, divisor=state.rate if due else call - state.computed)

    def observe(
        self, state: States, context: Context, measurements: Sequence[Measurement]
    ) -> tuple[Observation, States]:
        states, observations = list(state), []
        for index, branch in enumerate(state):
            shown = [measurement for measurement in measurements if measurement.branch in (None, index)]
            if shown:
                observation, states[index] = self._observed(branch, context, shown)
                observations.append(observation)
        return min(observations, key=lambda observation: observation["rate"]), tuple(states)

    def _observed(
        self, state: AdaCacheState, context: Context, measurements: Sequence[Measurement]
    ) -> tuple[Observation, AdaCacheState]:
        """Return what a branch observes, and the next state."""
        units = range(context.run.units)
        changes = [[ratio(m["change"][unit], m["magnitude"][unit]) for m in measurements] for unit in units]
        distances = [[change / state.divisor for change in sites] for sites in changes]
        mean = [sum(values) / len(values) for values in distances]
        scores = {m.site: tuple(self._score(m, unit, context) for unit in units) for m in measurements}
        last = measurements[-1]  # its factor alone regularises the mean, as in the original
        metrics = [mean[unit] * self._factor(state, scores, last.site, unit) for unit in units]
        rates = [self._rate(metric) for metric in metrics]
        cautious = min(units, key=lambda unit: (rates[unit], -nan_as_largest(metrics[unit])))
        observation: dict[str, float] = {"distance": mean[cautious]}
        if self.moreg is not None:
            observation["motion"] = _motion(last, cautious, self.moreg.strides)
        observation |= {"metric": metrics[cautious], "rate": rates[cautious]}
        if self.moreg is not None:
            observation["motion_score"] = scores[last.site][cautious]
        return observation, replace(state, rate=rates[cautious], scores={**state.scores, **scores})

    def _score(self, measured: Measurement, unit: int, context: Context) -> float:
        """Return the motion score m of eq. 7: 1 outside the window."""
        if self.moreg is None or not self.moreg.counts(context.call, context.run.calls):
            return 1.0
        try:
            return float((_motion(measured, unit, self.moreg.strides) / self.moreg.h0) ** self.moreg.exponent)
        except OverflowError:
            return math.inf

    def _factor(self, state: AdaCacheState, scores: dict[str, tuple[float, ...]], site: str, unit: int) -> float:
        """Return the factor m + |gradient| of eq. 8 and 9."""
        if self.moreg is None:
            return 1.0
        now = scores[site][unit]
        before = state.scores[site][unit] if site in state.scores else 1.0
        return now + abs(self.moreg.gradient * (now - before) / state.divisor)

    def _rate(self, metric: float) -> int:
        """Return the codebook's rate for a metric; NaN (one frame has no motion) is below no threshold."""
        *entries, (_, otherwise) = self.codebook
        return next((rate for threshold, rate in entries if metric < threshold), otherwise)


def _motion(measured: Measurement, unit: int, strides: Sequence[int]) -> float:
    """Return the relative change from frame to frame, the mean over the strides."""
    raw = [
        ratio(measured[at_stride("motion", stride)][unit], measured[at_stride("motion_magnitude", stride)][unit])
        for stride in strides
    ]
    return sum(raw) / len(raw)
