"""Delta-DiT (arXiv 2406.01125), as VideoSys' branch ``exp/tgate_deltadit`` does it for video.

What is cached is the change that a row of blocks makes. The branch subtracts it when it is reused, which is an error of
sign; here it is added, as in the paper.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from adacache_runtime.policies.modules import Schedule, blocks
from adacache_runtime.policy import Context, Decision, Measurement, Observation, Run


class DeltaDiT(BaseModel):
    """Reuses the change that some blocks make in every ``gap``-th call of an interval; the rest is computed.

    The sum of the blocks' residuals is the change that they make together, so each block may keep its own.

    Attributes:
        interval: first and last call, both included, counted from 0 as in the original.
        gap: of these many calls in the interval the last one reuses.
        pairs: first and last pair of a spatial and a temporal block that is reused, counted from 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["delta-dit"] = "delta-dit"
    interval: tuple[int, int]
    gap: int = Field(2, ge=2)
    pairs: tuple[int, int]

    @field_validator("interval", "pairs")
    @classmethod
    def _ordered(cls, ends: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= ends[0] <= ends[1]:
            raise ValueError("expected the first and the last, counted from 0")
        return ends

    @property
    def reuses(self) -> bool:
        return True

    @property
    def sites(self) -> tuple[str, ...] | None:
        return ()

    @property
    def strides(self) -> tuple[int, ...]:
        return ()

    def start(self, run: Run) -> Schedule:
        (first, last), (start, end) = self.interval, self.pairs
        chosen = [start <= block <= end for block in blocks(run, self.name)]
        reusing = [first <= index <= last and (index - first + 1) % self.gap == 0 for index in range(run.calls)]
        return tuple(Decision(tuple(not (reuse and block) for block in chosen)) for reuse in reusing)

    def decide(self, state: Schedule, context: Context) -> tuple[Decision, Schedule]:
        return state[context.call - 1], state

    def observe(
        self, state: Schedule, context: Context, measurements: Sequence[Measurement]
    ) -> tuple[Observation, Schedule]:
        return Observation(), state
