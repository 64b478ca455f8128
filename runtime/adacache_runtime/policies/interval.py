"""Fixed interval: computes every so many calls, whatever the content."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from adacache_runtime.policy import Context, Decision, Measurement, Observation, Run


class FixedInterval(BaseModel):
    """Computes calls 1, 1 + every, 1 + 2 every, ... and the last one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["interval"] = "interval"
    every: int = Field(2, ge=1)

    @property
    def reuses(self) -> bool:
        return self.every > 1

    @property
    def sites(self) -> tuple[str, ...] | None:
        return ()

    @property
    def strides(self) -> tuple[int, ...]:
        return ()

    def start(self, run: Run) -> None:
        return None

    def decide(self, state: None, context: Context) -> tuple[Decision, None]:
        compute = (context.call - 1) % self.every == 0 or context.call == context.run.calls
        return Decision((compute,) * context.run.groups), state

    def observe(
        self,
        state: None,
        context: Context,
        measurements: Sequence[Measurement],
    ) -> tuple[Observation, None]:
        return Observation(), state
