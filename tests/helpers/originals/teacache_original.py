"""The rule by which TeaCache's published code for Wan counts, written anew; it is the same for both branches.

Source: ali-vilab/TeaCache, ``TeaCache4Wan2.1``, without retention steps: the first and the last step are computed.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def teacache_calls(embeddings: NDArray[np.float64], coefficients: Sequence[float], threshold: float) -> list[bool]:
    """Return for each step whether it is computed.

    Args:
        embeddings: (steps, width), the embedding of each step's timestep.
        coefficients: coefficients of the polynomial, the highest power first.
        threshold: threshold of the sum of the polynomial's values.
    """
    computed, accumulated = [], 0.0
    for step, now in enumerate(embeddings):
        compute = step in (0, len(embeddings) - 1)
        if not compute:
            before = embeddings[step - 1]
            accumulated += float(np.polyval(coefficients, abs(now - before).mean() / abs(before).mean()))
            compute = accumulated >= threshold
        if compute:
            accumulated = 0.0
        computed.append(compute)
    return computed
