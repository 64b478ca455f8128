"""Policies that measure nothing: all decisions are known before the first call."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from adacache_runtime.caching.policy import Context, Decision, Measurement, Needs, Observation, Run

Schedule = tuple[Decision, ...]  # a decision for each call


class Scheduled(BaseModel):
    """A policy that measures nothing: its ``start`` returns all decisions."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def needs(self) -> Needs:
        return Needs()

    def start(self, run: Run) -> Schedule:
        raise NotImplementedError

    def decide(self, state: Schedule, context: Context) -> tuple[Decision, Schedule]:
        return state[context.call - 1], state

    def observe(
        self, state: Schedule, context: Context, measurements: Sequence[Measurement]
    ) -> tuple[Observation, Schedule]:
        return {}, state


def uniform(computed: Sequence[bool], run: Run) -> Schedule:
    """Return the schedule that computes all groups in these calls and reuses them in the others."""
    return tuple(Decision((compute,) * run.groups) for compute in computed)
