"""Pyramid Attention Broadcast (arXiv 2408.12588), as VideoSys does it (``pab_mgr.py``).

In the original the counters of calls go on from one video to the next, which shifts the schedule where the calls are
no multiple of the steps; here every run starts at 0.
"""

from collections.abc import Sequence
from typing import Literal

import ml_dtypes
import numpy as np
from pydantic import Field, field_validator

from adacache_runtime.caching.policies.scheduled.modules import Module, modules
from adacache_runtime.caching.policies.scheduled.schedule import Schedule, Scheduled
from adacache_runtime.caching.policy import Decision, Needs, Run


class PAB(Scheduled):
    """Compute each kind of attention every so many calls, the steadier the rarer, while the noise is in a window.

    Attributes:
        window: lowest and highest timestep, both excluded, between which attention is reused.
        spatial: number of calls of which one computes spatial attention, counted from the first call.
        temporal: the same number for temporal attention.
        cross: the same number for cross attention.
        mlp_starts: timesteps whose MLP output serves the next calls; one that the sampler does not visit is ignored.
        mlp_blocks: numbers of the blocks, spatial and temporal, whose MLP output is reused so.
        mlp_calls: number of calls that a start serves.
        rounding: rounding of timesteps before they are compared with the window and the starts. Open-Sora's timesteps
            are bfloat16, and the published starts are such numbers.
    """

    name: Literal["pab"] = "pab"
    window: tuple[float, float]
    spatial: int = Field(ge=1)
    temporal: int = Field(ge=1)
    cross: int = Field(ge=1)
    mlp_starts: tuple[int, ...] = ()
    mlp_blocks: tuple[int, ...] = ()
    mlp_calls: int = Field(2, ge=1)
    rounding: Literal["none", "bfloat16"] = "none"

    @property
    def needs(self) -> Needs:
        return Needs(granularity="module")

    @field_validator("window")
    @classmethod
    def _ordered(cls, window: tuple[float, float]) -> tuple[float, float]:
        if window[0] > window[1]:
            raise ValueError("the lower timestep of the window comes first")
        return window

    def start(self, run: Run) -> Schedule:
        groups = modules(run, self.name, ("spatial", "temporal"))
        timesteps = [self._rounded(timestep) for timestep in run.timesteps]
        return tuple(
            Decision(tuple(not self._reuse(index, timesteps, group) for group in groups)) for index in range(run.calls)
        )

    def _reuse(self, index: int, timesteps: Sequence[float], group: Module) -> bool:
        """Return whether the call of this index, from 0, reuses a group."""
        kind, block, part = group
        if part == "mlp":
            served = timesteps[max(0, index - self.mlp_calls) : index]
            starts = timesteps[index] in self.mlp_starts
            return block in self.mlp_blocks and not starts and any(timestep in self.mlp_starts for timestep in served)
        every = self.cross if part == "cross" else self.spatial if kind == "spatial" else self.temporal
        return index % every != 0 and self.window[0] < timesteps[index] < self.window[1]

    def _rounded(self, timestep: float) -> float:
        return float(ml_dtypes.bfloat16(np.float32(timestep))) if self.rounding == "bfloat16" else timestep
