"""T-GATE (arXiv 2404.02747), as VideoSys' branch ``exp/tgate_deltadit`` does it for video.

Unlike the paper, guidance stays on after the gate, and the maps of its two branches are not averaged.
"""

from typing import Literal

from pydantic import Field, field_validator

from adacache_runtime.caching.policies.scheduled.modules import Module, modules
from adacache_runtime.caching.policies.scheduled.schedule import Schedule, Scheduled
from adacache_runtime.caching.policy import Decision, Needs, Run


class TGate(Scheduled):
    """Reuse self-attention between early calls, and cross-attention in all late ones; always compute MLPs.

    Calls are counted from 0, as in the original.

    Attributes:
        window: first and last call, both excluded, between which self-attention is reused.
        gap: number of calls in the window of which one computes self-attention.
        gate: last call that computes cross-attention.
    """

    name: Literal["tgate"] = "tgate"
    window: tuple[int, int]
    gap: int = Field(ge=1)
    gate: int = Field(ge=0)

    @property
    def needs(self) -> Needs:
        return Needs(granularity="module")

    @field_validator("window")
    @classmethod
    def _ordered(cls, window: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= window[0] <= window[1]:
            raise ValueError("a window is two calls, the earlier first, counted from 0")
        return window

    def start(self, run: Run) -> Schedule:
        groups = modules(run, self.name)
        return tuple(Decision(tuple(not self._reuse(index, group) for group in groups)) for index in range(run.calls))

    def _reuse(self, index: int, group: Module) -> bool:
        _, _, part = group
        if part == "attn":
            return self.window[0] < index < self.window[1] and index % self.gap != 0
        return part == "cross" and index > self.gate
