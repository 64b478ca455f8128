"""Policies driven call by call without a model, on measurements that a test makes up."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from adacache_runtime.caching.policy import Context, Measurement, Observation, Place, Policy, Run
from adacache_runtime.caching.signals.signal import at_stride

SITE = "temporal.0.attn"


def measured(distance: float | Sequence[float], motion: Sequence[float] = (), site: str = SITE) -> Measurement:
    """Return the measurement of these relative changes, one a unit, and of this motion at each stride in all units."""
    distances = (distance,) if isinstance(distance, int | float) else tuple(distance)
    twos = (2.0,) * len(distances)
    numbers = {"change": tuple(2.0 * distance for distance in distances), "magnitude": twos}
    for stride, raw in enumerate(motion, 1):
        moved = (2.0 * raw,) * len(distances)
        numbers |= {at_stride("motion", stride): moved, at_stride("motion_magnitude", stride): twos}
    return Measurement(site, numbers)


def places(*names: str) -> tuple[Place, ...]:
    """Groups that are called as the stages of fake and reference models are, such as ``spatial.07.attn``."""
    return tuple(map(_place, names))


def _place(name: str) -> Place:
    match = re.fullmatch(r"(spatial|temporal)\.(\d+)(?:\.(\w+))?( to \1\.\2\.\w+)?", name)
    return Place(name, match[1], int(match[2]), None if match[4] else match[3]) if match else Place(name)


def changed(site: str, change: tuple[float, ...], magnitude: tuple[float, ...]) -> Measurement:
    """A site's change relative to a magnitude, which is that of the earlier tensor and of the new one."""
    return Measurement(site, {"change": change, "magnitude": magnitude, "new_magnitude": magnitude})


def replay(
    policy: Policy[Any], calls: int, shown: Mapping[int, Sequence[Measurement]], units: int = 1, groups: int = 1
) -> tuple[list[int], dict[int, Observation]]:
    """Return the computed calls and what was observed in them; ``shown`` is what a call measures if it is computed."""
    run = Run(calls, groups, units)
    state = policy.start(run)
    computed, observed = [], {}
    for call in range(1, calls + 1):
        context = Context(run, call, 1000.0 - call)
        decision, state = policy.decide(state, context)
        assert len(decision.compute) == groups
        assert len(set(decision.compute)) == 1
        if decision.compute[0]:
            if computed:  # the first computed call has nothing to compare with
                observed[call], state = policy.observe(state, context, shown[call])
            computed.append(call)
    return computed, observed


@st.composite
def codebooks(draw: st.DrawFn) -> list[tuple[float, int]]:
    thresholds = sorted(draw(st.lists(st.floats(0.001, 2), min_size=1, max_size=7)))
    return [(threshold, draw(st.integers(1, 14))) for threshold in thresholds]
