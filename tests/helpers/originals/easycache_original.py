"""The rule by which EasyCache's published code for Wan decides, written anew: the conditional branch decides for both.

Source: H-EmbodVis/EasyCache, ``EasyCache4Wan2.1`` and ``EasyCache4Wan2.2``.
"""

import numpy as np
from numpy.typing import NDArray


def easycache_calls(
    latents: NDArray[np.float64], outputs: NDArray[np.float64], threshold: float, first: int, last: int
) -> list[bool]:
    """Return for each step whether it is computed.

    Args:
        latents: (steps, values), the latents that enter each step.
        outputs: (steps, values), what the conditional branch gives in each step if it is computed.
        threshold: threshold of the estimate.
        first, last: number of steps at the beginning and at the end that are always computed.
    """

    def apart(values: NDArray[np.float64], one: int, other: int) -> float:
        return float(abs(values[one] - values[other]).mean())

    steps, computed = len(latents), list[int]()
    for step in range(steps):
        kept = step < first or step >= steps - last
        if not kept:
            before, newest = computed[-2:]
            factor = apart(outputs, newest, before) / apart(latents, newest, before)
            moved = sum(apart(latents, one, one - 1) for one in range(newest + 1, step + 1))
            kept = factor * moved / float(abs(outputs[newest]).mean()) >= threshold
        if kept:
            computed.append(step)
    return [step in computed for step in range(steps)]
