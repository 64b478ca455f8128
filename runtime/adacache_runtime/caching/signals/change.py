"""Change: the sums of AdaCache's distance (arXiv 2411.02397, eq. 4), sum |cached - new| and sum |cached|."""

from adacache_runtime.caching.signals.signal import Arrays, Signal

NODES = """
    axes = Constant <value_ints = [{axes}]> ()
    before = Cast <to = 1> (cached)
    after = Cast <to = 1> (new)
    difference = Sub (before, after)
    apart = Abs (difference)
    change = ReduceSum <keepdims = 0> (apart, axes)
    size = Abs (before)
    magnitude = ReduceSum <keepdims = 0> (size, axes)
"""


def _reference(given: Arrays) -> Arrays:
    cached, new = given["cached"], given["new"]
    axes = tuple(range(1, cached.ndim))
    return {"change": abs(cached - new).sum(axes), "magnitude": abs(cached).sum(axes)}


CHANGE = Signal(
    name="change",
    inputs=("cached", "new"),
    numbers=("change", "magnitude"),
    nodes=NODES,
    reference=_reference,
    independent_axes=("patch_frames", "tokens"),
    spaces=("hidden", "latents", "time", "time_modulation"),
)
