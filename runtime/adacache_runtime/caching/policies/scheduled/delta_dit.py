"""Delta-DiT (arXiv 2406.01125), as VideoSys' branch ``exp/tgate_deltadit`` does it for video.

The change that a row of blocks makes is cached. The branch subtracts it when it is reused, which is an error of sign;
here it is added, as in the paper, unless ``sign`` asks for what the branch does.
"""

from typing import Literal

from pydantic import Field, field_validator

from adacache_runtime.caching.policies.scheduled.modules import blocks
from adacache_runtime.caching.policies.scheduled.schedule import Schedule, Scheduled
from adacache_runtime.caching.policy import Decision, Needs, Run


class DeltaDiT(Scheduled):
    """Reuse the change that some blocks make in every ``gap``-th call of an interval; compute the rest.

    The sum of the blocks' residuals is the change that they make together, so each block may keep its own.

    Attributes:
        interval: first and last call, both included, counted from 0 as in the original.
        gap: number of calls in the interval of which the last one reuses.
        pairs: first and last pair of a spatial and a temporal block that is reused, counted from 0.
        sign: sign with which the change is reused: 1, or -1 as in the released code, with which the published tables
            were made.
    """

    name: Literal["delta-dit"] = "delta-dit"
    interval: tuple[int, int]
    gap: int = Field(2, ge=2)
    pairs: tuple[int, int]
    sign: Literal[1, -1] = 1

    @property
    def needs(self) -> Needs:
        return Needs(weighted=self.sign != 1, granularity="block")

    @field_validator("interval", "pairs")
    @classmethod
    def _ordered(cls, ends: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= ends[0] <= ends[1]:
            raise ValueError("expected the first and the last, counted from 0")
        return ends

    def start(self, run: Run) -> Schedule:
        (first, last), (start, end) = self.interval, self.pairs
        chosen = [start <= block <= end for block in blocks(run, self.name)]
        reusing = [first <= index <= last and (index - first + 1) % self.gap == 0 for index in range(run.calls)]
        weights = () if self.sign == 1 else ((float(self.sign),),) * run.groups
        return tuple(Decision(tuple(not (reuse and block) for block in chosen), weights) for reuse in reusing)
