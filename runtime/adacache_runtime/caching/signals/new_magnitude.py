"""The magnitude of a call's own tensor, sum |new|, which EasyCache relates the next call's change to."""

from adacache_runtime.caching.signals.signal import Arrays, Signal

NODES = """
    axes = Constant <value_ints = [{axes}]> ()
    wide = Cast <to = 1> (new)
    size = Abs (wide)
    new_magnitude = ReduceSum <keepdims = 0> (size, axes)
"""


def _reference(given: Arrays) -> Arrays:
    new = given["new"]
    return {"new_magnitude": abs(new).sum(tuple(range(1, new.ndim)))}


NEW_MAGNITUDE = Signal(
    name="new_magnitude",
    inputs=("new",),
    numbers=("new_magnitude",),
    nodes=NODES,
    reference=_reference,
    independent_axes=("patch_frames", "tokens"),
    spaces=("latents",),
)
