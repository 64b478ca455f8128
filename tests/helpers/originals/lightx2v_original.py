"""The rule by which LightX2V decides with AdaCache on Wan, written anew: for each branch by itself, with motion.

Source: ModelTC/LightX2V, ``networks/wan/infer/feature_caching``. Its frames have 1536 tokens whatever the video's size;
here they are those of the video.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

THRESHOLDS, RATES = (0.03, 0.05, 0.07, 0.09, 0.11), (12, 10, 8, 6, 4, 3)


def lightx2v_calls(residuals: Sequence[NDArray[np.float64]]) -> list[bool]:
    """Return for each step whether a branch is computed.

    Args:
        residuals: by step, the branch's residual (frames, values) of attention in the middle block, if it is computed.
    """
    steps, due, rate, score = len(residuals), 0, 1, 1.0
    computed: list[int] = []
    for step, residual in enumerate(residuals):
        if step != due:
            continue
        if computed:
            cached = residuals[computed[-1]]
            distance = abs(cached - residual).sum() / abs(cached).sum() / rate
            before, score = score, 1.0
            if int(0.1 * steps) <= step <= int(0.9 * steps):
                earlier, later = residual[:-1], residual[1:]
                score = (abs(later - earlier).sum() / (abs(later).sum() + abs(earlier).sum()) / 0.385) ** 8
            distance *= score + abs(10 * (score - before) / rate)
            rate = RATES[sum(distance >= threshold for threshold in THRESHOLDS)]
        computed.append(step)
        due = step + rate
    return [step in computed for step in range(steps)]
