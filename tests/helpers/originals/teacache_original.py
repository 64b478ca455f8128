"""The rule by which TeaCache's published code for Wan counts, written anew; it is the same for both branches.

Source: ali-vilab/TeaCache, ``TeaCache4Wan2.1``. Without retention steps it measures the embedding of the timestep, and
computes the first and the last step; with them the modulation that is made of it, and the first five.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def teacache_calls(
    embeddings: NDArray[np.float64], coefficients: Sequence[float], threshold: float, first: int = 1, last: int = 1
) -> list[bool]:
    """Return for each step whether it is computed.

    Args:
        embeddings: (steps, width), what is measured in each step.
        coefficients: coefficients of the polynomial, the highest power first.
        threshold: threshold of the sum of the polynomial's values.
        first, last: number of steps at the beginning and at the end that are always computed.
    """
    computed, accumulated = [], 0.0
    for step, now in enumerate(embeddings):
        compute = step < first or step >= len(embeddings) - last
        if not compute:
            before = embeddings[step - 1]
            accumulated += float(np.polyval(coefficients, abs(now - before).mean() / abs(before).mean()))
            compute = accumulated >= threshold
        if compute:
            accumulated = 0.0
        computed.append(compute)
    return computed
