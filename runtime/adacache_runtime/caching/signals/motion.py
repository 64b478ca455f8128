"""Motion: the sums of motion regularisation (arXiv 2411.02397, eq. 7) over pairs of frames.

They are sum |later - earlier| and sum |later| + |earlier|. A frame is compared with a later one, so the work is not
independent along frames.
"""

from adacache_runtime.caching.signals.signal import Arrays, Signal

NODES = """
    axes = Constant <value_ints = [{axes}]> ()
    wide = Cast <to = 1> (new)
    first = Gather <axis = {frames}> (wide, earlier)
    second = Gather <axis = {frames}> (wide, later)
    difference = Sub (second, first)
    apart = Abs (difference)
    motion = ReduceSum <keepdims = 0> (apart, axes)
    size_of_first = Abs (first)
    size_of_second = Abs (second)
    size = Add (size_of_second, size_of_first)
    motion_magnitude = ReduceSum <keepdims = 0> (size, axes)
"""


def _reference(given: Arrays) -> Arrays:
    first, second = given["new"][:, given["earlier"]], given["new"][:, given["later"]]
    axes = tuple(range(1, first.ndim))
    return {
        "motion": abs(second - first).sum(axes),
        "motion_magnitude": (abs(second) + abs(first)).sum(axes),
    }


MOTION = Signal(
    name="motion",
    inputs=("new", "earlier", "later"),
    numbers=("motion", "motion_magnitude"),
    nodes=NODES,
    reference=_reference,
    independent_axes=("tokens",),
    spaces=("hidden",),
)
