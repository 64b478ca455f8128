"""Never reuse: the plain loop, and the default."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from adacache_runtime.policy import Context, Decision, Measurement, Observation, Run


class NeverReuse(BaseModel):
    """Computes every group at every call."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["never"] = "never"

    @property
    def reuses(self) -> bool:
        return False

    @property
    def sites(self) -> tuple[str, ...] | None:
        return ()

    @property
    def strides(self) -> tuple[int, ...]:
        return ()

    def start(self, run: Run) -> None:
        return None

    def decide(self, state: None, context: Context) -> tuple[Decision, None]:
        return Decision((True,) * context.run.groups), state

    def observe(
        self,
        state: None,
        context: Context,
        measurements: Sequence[Measurement],
    ) -> tuple[Observation, None]:
        return Observation(), state
