"""Guidance in every so many calls: in between, the unconditional branch is rebuilt from the conditional one.

The simplest policy whose decisions differ by branch. Its idea is that of FasterCache's CFG-Cache (arXiv 2410.19355,
section 3.2), which keeps the difference of both branches in two bands of frequencies; here it is kept as it is. A call
of one branch costs about half.
"""

from typing import Literal

from pydantic import Field

from adacache_runtime.caching.policies.scheduled.schedule import Schedule, Scheduled
from adacache_runtime.caching.policy import Decision, Needs, Run

REBUILT = "unconditional"


class GuidanceEvery(Scheduled):
    """Runs both branches in calls 1, 1 + every, 1 + 2 every, ... and the last one; in the others the conditional alone.

    A model or a generation with a single branch is computed as it is.
    """

    name: Literal["guidance-every"] = "guidance-every"
    every: int = Field(2, ge=1)

    @property
    def needs(self) -> Needs:
        return Needs(residuals=0, rebuilds=self.every > 1)

    def start(self, run: Run) -> Schedule:
        whole = Decision((True,) * run.groups)
        if REBUILT not in run.branches:
            return (whole,) * run.calls
        alone = Decision(whole.compute, rebuild=tuple(1.0 if branch == REBUILT else None for branch in run.branches))
        return tuple(
            whole if index % self.every == 0 or index == run.calls - 1 else alone for index in range(run.calls)
        )
