"""A policy and a signal from outside the project: reuse while the residual points the way of the last computed one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adacache_runtime.caching.policy import Context, Decision, Measure, Measurement, Needs, Observation, Run
from adacache_runtime.caching.signals.signal import Arrays, Signal

NODES = """
    axes = Constant <value_ints = [{axes}]> ()
    before = Cast <to = 1> (cached)
    after = Cast <to = 1> (new)
    products = Mul (before, after)
    product = ReduceSum <keepdims = 0> (products, axes)
    squares_before = Mul (before, before)
    cached_square = ReduceSum <keepdims = 0> (squares_before, axes)
    squares_after = Mul (after, after)
    new_square = ReduceSum <keepdims = 0> (squares_after, axes)
"""


def _reference(given: Arrays) -> Arrays:
    cached, new = given["cached"], given["new"]
    axes = tuple(range(1, cached.ndim))
    return {
        "product": (cached * new).sum(axes),
        "cached_square": (cached * cached).sum(axes),
        "new_square": (new * new).sum(axes),
    }


COSINE = Signal(
    name="cosine",
    inputs=("cached", "new"),
    numbers=("product", "cached_square", "new_square"),
    nodes=NODES,
    reference=_reference,
    independent_axes=("patch_frames", "tokens"),
    spaces=("hidden",),
)


@dataclass(frozen=True)
class CosineCache:
    """Compute every second call, and the next one, too, where the cosine between two residuals is below ``least``."""

    least: float = 0.5

    @property
    def needs(self) -> Needs:
        return Needs(measures=(Measure(signals=("cosine",)),))

    def start(self, run: Run) -> bool:
        """Return whether the next call is to be computed."""
        return True

    def decide(self, state: bool, context: Context) -> tuple[Decision, bool]:
        compute = state or context.forced or context.call <= 2
        return Decision((compute,) * context.run.groups), not compute

    def observe(self, state: bool, context: Context, measurements: Sequence[Measurement]) -> tuple[Observation, bool]:
        cosines = [
            seen["product"][unit] / math.sqrt(seen["cached_square"][unit] * seen["new_square"][unit])
            for seen in measurements
            for unit in range(context.run.units)
        ]
        return {"cosine": min(cosines)}, state or min(cosines) < self.least


POLICY = CosineCache()
