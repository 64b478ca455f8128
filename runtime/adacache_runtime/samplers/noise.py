"""Samplers of models that predict noise, trained on 1000 timesteps with a linear schedule of beta: DDIM and PNDM.

As in :mod:`adacache_runtime.samplers.rflow`, every update is z' = a z + sum_k b_k e_k over the predictions e of the
last calls. abar_t is the share of the signal's variance that is left at timestep t.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import OutOfRangeError
from adacache_runtime.samplers.rflow import TRAIN_TIMESTEPS, Update

BETA_FIRST, BETA_LAST = 1e-4, 2e-2
DDIM_HISTORY, PNDM_HISTORY = 1, 6  # predictions that the update of a call may use

RUNGE_KUTTA_GROUPS = 3  # of four calls; their first predictions start the multistep method
RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
ADAMS_BASHFORTH = (55 / 24, -59 / 24, 37 / 24, -9 / 24)  # the newest prediction first
FEWEST_PNDM = RUNGE_KUTTA_GROUPS + 1


def signal_variances() -> NDArray[np.float32]:
    """Abar (1000,), with the roundings of float32 that the models were trained with."""
    betas = np.linspace(BETA_FIRST, BETA_LAST, TRAIN_TIMESTEPS, dtype=np.float32)
    return np.cumprod(np.float32(1) - betas, dtype=np.float64).astype(np.float32)


def ddim(steps: int, samples: int) -> Iterator[Update]:
    """DDIM without noise (arXiv 2010.02502, eq. 12, sigma = 0), down to abar = 1.

    Timesteps are evenly spaced from 0 up ("leading"): 50 steps evaluate 980, 960, ..., 0.

    Raises:
        OutOfRangeError: ``steps`` is not 1 to 1000.
    """
    variances, ratio = signal_variances(), _ratio(steps, 1)
    for step in range(steps - 1, -1, -1):
        here = float(variances[step * ratio])
        there = float(variances[(step - 1) * ratio]) if step else 1.0
        scale = math.sqrt(there / here)
        yield _update(step * ratio, 0, scale, {0: math.sqrt(1 - there) - scale * math.sqrt(1 - here)}, 1, samples)


def pndm(steps: int, samples: int, idle_call: bool = False) -> Iterator[Update]:
    """PNDM with its Runge-Kutta start (arXiv 2202.09778, eq. 11 to 13 and algorithm 2): ``steps`` + 8 calls.

    As in Open-Sora-Plan, it ends at abar of timestep 0. The original makes one more call there, whose update changes
    nothing; it is left out, but with ``idle_call``.

    Raises:
        OutOfRangeError: ``steps`` is not 4 to 1000.
    """
    variances, ratio = signal_variances(), _ratio(steps, FEWEST_PNDM)
    half = ratio // 2

    def transfer(start: int, end: int) -> tuple[float, float]:
        """Coefficients of z and e on the way from one timestep to another."""
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
            yield _update(at, slots[call], scale, weights, PNDM_HISTORY, samples)
            grown, added = stretch, reached
    for count, step in enumerate(range(steps - FEWEST_PNDM, -1 if idle_call else 0, -1)):
        stretch, push = transfer(step * ratio, max(step - 1, 0) * ratio)
        slot = (RUNGE_KUTTA_GROUPS + count) % len(ADAMS_BASHFORTH)
        weights = {(slot - age) % len(ADAMS_BASHFORTH): push * share for age, share in enumerate(ADAMS_BASHFORTH)}
        yield _update(step * ratio, slot, stretch, weights, PNDM_HISTORY, samples)


def _ratio(steps: int, fewest: int) -> int:
    """Timesteps between two evaluated ones."""
    if not fewest <= steps <= TRAIN_TIMESTEPS:
        raise OutOfRangeError(f"{steps} steps are not possible with this sampler; choose {fewest} to {TRAIN_TIMESTEPS}")
    return TRAIN_TIMESTEPS // steps


def _update(timestep: int, slot: int, scale: float, weights: Mapping[int, float], history: int, samples: int) -> Update:
    """The same for all samples."""
    values = np.zeros((history, samples), np.float32)
    for place, weight in weights.items():
        values[place] = weight
    return Update(np.full(samples, timestep, np.float32), slot, np.full(samples, scale, np.float32), values)
