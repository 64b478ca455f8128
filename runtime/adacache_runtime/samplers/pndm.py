"""PNDM with its Runge-Kutta start, for models that predict noise (arXiv 2202.09778, eq. 11 to 13 and algorithm 2).

The Runge-Kutta steps are linear in the predictions, too: each of their intermediate latents is written as a multiple of
the latents at the step's entry, plus a sum of predictions.
"""

import math
from collections.abc import Iterator

from adacache_runtime.samplers.noise_schedule import signal_variances, timesteps_apart
from adacache_runtime.samplers.update import Update, uniform_update

HISTORY = 6  # predictions that an update may use

RUNGE_KUTTA_GROUPS = 3  # of four calls; their first predictions start the multistep method
RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
ADAMS_BASHFORTH = (55 / 24, -59 / 24, 37 / 24, -9 / 24)  # the newest prediction first
FEWEST_STEPS = RUNGE_KUTTA_GROUPS + 1


def pndm(steps: int, samples: int, idle_call: bool = False) -> Iterator[Update]:
    """Yield the updates of PNDM: ``steps`` + 8 calls.

    As in Open-Sora-Plan, it ends at abar of timestep 0. The original makes one more call there, whose update changes
    nothing; it is left out, unless ``idle_call`` asks for it.

    Raises:
        OutOfRangeError: ``steps`` is not 4 to 1000.
    """
    variances, ratio = signal_variances(), timesteps_apart(steps, FEWEST_STEPS)
    half = ratio // 2

    def transfer(start: int, end: int) -> tuple[float, float]:
        """Return the coefficients of z and e on the way from one timestep to another."""
        here, there = float(variances[start]), float(variances[end])
        bend = here * math.sqrt(1 - there) + math.sqrt(here * (1 - here) * there)
        return math.sqrt(there / here), (here - there) / bend

    for group in range(RUNGE_KUTTA_GROUPS):
        high, low = ((steps - 1 - group - last) * ratio for last in (0, 1))
        slots = (group, 3, 4, 5)
        # each target is reached from the latents at the group's entry, which follow from the current ones:
        # z = grown entry + sum of added e
        grown, added = 1.0, dict.fromkeys(slots, 0.0)
        middle = low + half
        targets = ((high, high - half), (middle, middle), (middle, middle - half), (low, low))
        for call, (at, target) in enumerate(targets):
            shares = dict(zip(slots, RUNGE_KUTTA, strict=True)) if call == 3 else {slots[call]: 1.0}
            stretch, push = transfer(high, target)
            reached = {slot: push * shares.get(slot, 0.0) for slot in slots}
            scale = stretch / grown
            weights = {slot: reached[slot] - scale * added[slot] for slot in slots}
            yield uniform_update(at, slots[call], scale, weights, HISTORY, samples)
            grown, added = stretch, reached
    for count, step in enumerate(range(steps - FEWEST_STEPS, -1 if idle_call else 0, -1)):
        stretch, push = transfer(step * ratio, max(step - 1, 0) * ratio)
        slot = (RUNGE_KUTTA_GROUPS + count) % len(ADAMS_BASHFORTH)
        weights = {(slot - age) % len(ADAMS_BASHFORTH): push * share for age, share in enumerate(ADAMS_BASHFORTH)}
        yield uniform_update(step * ratio, slot, stretch, weights, HISTORY, samples)
