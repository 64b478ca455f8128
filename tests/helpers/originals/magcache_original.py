"""The rule by which MagCache's published code for Wan counts, written anew: two branches in turn, over all experts.

Source: Zehong-Ma/MagCache, ``MagCache4Wan2.1`` and ``MagCache4Wan2.2``.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Kind = Literal["one", "text", "image"]  # one transformer; two, from text; two, from an image


def magcache_calls(
    ratios: Sequence[float],
    steps: int,
    threshold: float,
    longest: int,
    retention: float,
    kind: Kind = "one",
    high_noise_steps: int = 0,
    carried: bool = True,
) -> list[tuple[bool, bool]]:
    """Return for each step whether the conditional and the unconditional branch are computed.

    Args:
        ratios: ratios of both branches in turn, without those of the first step.
        steps: number of steps.
        threshold: largest error.
        longest: largest number of reuses in a row.
        retention: share of calls that are always computed.
        kind: number of transformers, and what a video starts from.
        high_noise_steps: number of steps of the first of two transformers.
        carried: whether the sums of the first of two transformers go on in the second, as they do in that code; else
            they start anew, as all that a policy knows.
    """
    table = np.array([1.0, 1.0, *ratios])
    if len(table) != 2 * steps:
        places = np.round(np.arange(steps) * ((len(table) // 2 - 1) / (steps - 1))).astype(int)
        table = np.stack([table[0::2][places], table[1::2][places]], axis=1).reshape(-1)
    total, split = 2 * steps, 2 * high_noise_steps
    product, error, skipped = [1.0, 1.0], [0.0, 0.0], [0, 0]
    computed = []
    for count in range(total):
        if count == split and not carried:
            product, error, skipped = [1.0, 1.0], [0.0, 0.0], [0, 0]
        branch = count % 2
        if kind == "one":
            kept = count < int(total * retention)
        elif kind == "image":
            kept = count < int(split + (total - split) * retention)
        else:
            kept = count < int(split * retention) or split <= count <= (total - split) * retention + split
        skip = False
        if not kept:
            product[branch] *= table[count]
            error[branch] += abs(1 - product[branch])
            skipped[branch] += 1
            skip = error[branch] < threshold and skipped[branch] <= longest
            if not skip:
                product[branch], error[branch], skipped[branch] = 1.0, 0.0, 0
        computed.append(not skip)
    return list(zip(computed[0::2], computed[1::2], strict=True))
