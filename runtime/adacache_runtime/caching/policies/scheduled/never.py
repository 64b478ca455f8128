"""Never reuse: the plain loop, and the default."""

from typing import Literal

from adacache_runtime.caching.policies.scheduled.schedule import Schedule, Scheduled
from adacache_runtime.caching.policy import Decision, Needs, Run


class NeverReuse(Scheduled):
    """Compute every group in every call."""

    name: Literal["never"] = "never"

    @property
    def needs(self) -> Needs:
        return Needs(residuals=0)

    def start(self, run: Run) -> Schedule:
        return (Decision((True,) * run.groups),) * run.calls
