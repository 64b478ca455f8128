"""Fixed interval: computes every so many calls, whatever the content."""

from typing import Literal

from pydantic import Field

from adacache_runtime.caching.policies.scheduled.schedule import Schedule, Scheduled, uniform
from adacache_runtime.caching.policy import Needs, Run


class FixedInterval(Scheduled):
    """Compute calls 1, 1 + every, 1 + 2 every, ... and the last one."""

    name: Literal["interval"] = "interval"
    every: int = Field(2, ge=1)

    @property
    def needs(self) -> Needs:
        return Needs(residuals=int(self.every > 1))

    def start(self, run: Run) -> Schedule:
        return uniform([index % self.every == 0 or index == run.calls - 1 for index in range(run.calls)], run)
