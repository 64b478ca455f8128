"""First-block cache (ParaAttention's FBCache): the first block always runs, and its residual tells of the others'.

Source: chengzeyi/ParaAttention, ``first_block_cache``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from adacache_engines.errors import PolicyError
from adacache_runtime.caching.policies.measured.numbers import ratios, worst
from adacache_runtime.caching.policy import FIRST, Context, Decision, Measure, Measurement, Needs, Observation, Run


@dataclass(frozen=True)
class FBCacheState:
    """FBCache between two calls.

    Attributes:
        near: whether the first block's residual is near that of the last computed call.
    """

    near: bool = False


class FBCache(BaseModel):
    """Reuse the other blocks' residual while the first block's has changed little since the last computed call.

    Attributes:
        threshold: largest change, relative L1, at which it is reused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["fbcache"] = "fbcache"
    threshold: float = Field(gt=0)

    @property
    def needs(self) -> Needs:
        return Needs(measures=(Measure(FIRST, calls="all", since="computed"),), granularity="first")

    def bounds(self) -> tuple["FBCache", "FBCache"]:
        """Return the policies to which every change is small, and none."""
        fewest, most = (self.model_copy(update={"threshold": value}) for value in (math.inf, -math.inf))
        return fewest, most

    def start(self, run: Run) -> FBCacheState:
        blocks = [(place.kind, place.index) for place in run.places[:2]]
        if run.groups < 2 or not blocks or blocks[0] == (None, None) or blocks[1:] == blocks[:1]:
            first = run.places[0].name if run.places else "without a name"
            raise PolicyError(
                f"policy {self.name} always computes the first group and decides for the others, and here the first "
                f"is {first}: run with --granularity first, or block"
            )
        return FBCacheState()

    def observe(
        self, state: FBCacheState, context: Context, measurements: Sequence[Measurement]
    ) -> tuple[Observation, FBCacheState]:
        (seen,) = measurements
        distances = ratios(seen["change"], seen["magnitude"])
        near = all(distance < self.threshold for distance in distances)  # NaN is far
        return {"distance": worst(distances)}, FBCacheState(near)

    def decide(self, state: FBCacheState, context: Context) -> tuple[Decision, FBCacheState]:
        compute = context.call == 1 or context.forced or not state.near
        return Decision((True, *(compute,) * (context.run.groups - 1))), FBCacheState()
