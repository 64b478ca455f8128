"""Fixed interval: computes every so many calls, whatever the content."""

from typing import Literal

from pydantic import Field

from adacache_runtime.policies.scheduled import Schedule, Scheduled
from adacache_runtime.policy import Decision, Run


class FixedInterval(Scheduled):
    """Computes calls 1, 1 + every, 1 + 2 every, ... and the last one."""

    name: Literal["interval"] = "interval"
    every: int = Field(2, ge=1)

    @property
    def reuses(self) -> bool:
        return self.every > 1

    def start(self, run: Run) -> Schedule:
        computed = [call % self.every == 0 or call == run.calls - 1 for call in range(run.calls)]
        return tuple(Decision((compute,) * run.groups) for compute in computed)
