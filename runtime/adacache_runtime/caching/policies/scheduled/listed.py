"""An explicit list of computed calls, chosen beforehand, such as by LeMiCa's search (NeurIPS 2025)."""

from typing import Literal

from pydantic import Field, field_validator

from adacache_engines.errors import PolicyError
from adacache_runtime.caching.policies.scheduled.schedule import Schedule, Scheduled, uniform
from adacache_runtime.caching.policy import Run


class ListedCalls(Scheduled):
    """Compute the calls of a list, and the first call of each expert; reuse in all others.

    Attributes:
        computed: numbers of the computed calls of a generation in rising order, counted from 1 through the calls of all
            experts; the first one is 1.
        calls: number of calls of the generations that the list was made for; None = any that is large enough.
    """

    name: Literal["listed"] = "listed"
    computed: tuple[int, ...] = Field(min_length=1)
    calls: int | None = Field(None, ge=1)

    @field_validator("computed")
    @classmethod
    def _rising(cls, computed: tuple[int, ...]) -> tuple[int, ...]:
        if computed[0] != 1 or list(computed) != sorted(set(computed)):
            raise ValueError("expected rising numbers of calls that begin with 1, for there is nothing to reuse before")
        return computed

    def start(self, run: Run) -> Schedule:
        total = run.before + run.calls + run.after
        if self.computed[-1] > total or self.calls not in (None, total):
            made_for = f"{self.calls} calls" if self.calls else f"at least {self.computed[-1]} calls"
            raise PolicyError(
                f"policy {self.name} lists the computed calls of a generation of {made_for}, and this one has "
                f"{total}: choose the steps that it was made for, or another list"
            )
        return uniform([call == 1 or run.before + call in self.computed for call in range(1, run.calls + 1)], run)
