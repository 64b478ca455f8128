"""UniPC of order 2 with B(h) = e^h - 1, for models that predict the velocity of a flow.

Source: Zhao et al., arXiv 2302.04867, algorithms 1 and 2 (UniC and UniP), in their form for predictions of the data.
The noise levels, and the orders of the first and the last step, are those of diffusers' ``UniPCMultistepScheduler``.

The history holds predictions of the data, m = z - sigma v. The latents that enter a call are the predictor's. The
corrector, which knows the call's own prediction, would change them by a sum of the last three predictions, because
both are the same multiple of the latents before them. So the corrected latents are never stored: an update corrects
and predicts at once.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adacache_runtime.samplers.flow import LOWEST, shifted
from adacache_runtime.samplers.update import TRAIN_TIMESTEPS, Update, uniform_update

HISTORY = 3  # predictions of the data that an update uses
ORDER = 2
NEAREST_TO_NOISE = 1 - 1e-6  # at 1 the signal-to-noise ratio has no logarithm


def unipc_sigmas(steps: int, shift: float = 1.0) -> NDArray[np.float64]:
    """Return noise levels (steps + 1,), which fall from almost 1 to 0 and are not yet rounded to float32.

    Before the shift they are evenly spaced from 1, and the step after the last would reach 1/1000.
    """
    sigmas = shifted(np.linspace(1, LOWEST, steps + 1)[:-1], np.float64(shift))
    return np.append(np.minimum(sigmas, NEAREST_TO_NOISE), 0)


@dataclass(frozen=True)
class Interval:
    """The way from one noise level to the next, in the logarithm of the signal-to-noise ratio.

    Attributes:
        kept: factor on the latents, sigma' / sigma.
        push: -(1 - sigma') B(-h), factor on the prediction and on its differences.
        h: length, infinite for the way to sigma = 0.
        older: place of the noise level before these two, in units of h from the first of them, which is negative;
            None = there is none.
    """

    kept: float
    push: float
    h: float
    older: float | None

    def predictor(self, order: int) -> tuple[float, ...]:
        """Return the weights of predictions by age, the newest first, in the latents that are predicted (UniP)."""
        if order == 1 or self.older is None:
            return (self.push,)
        difference = self.push * 0.5 / self.older
        return (self.push - difference, difference)

    def correction(self, order: int) -> tuple[float, ...]:
        """Return the weights of predictions by age in what UniC adds to the latents that UniP gave.

        The newest prediction is that at the end of the interval.
        """
        if order == 1 or self.older is None:
            at_end = self.push * 0.5
            return (at_end, -at_end)
        phi = math.expm1(-self.h) / -self.h - 1
        first, second = (phi / math.expm1(-self.h), 2 * (phi / -self.h - 0.5) / math.expm1(-self.h))
        rho = (first - second) / (1 - self.older)  # of rho + rho_end = first, rho older + rho_end = second
        at_end = self.push * (first - rho)
        difference = self.push * (rho - 0.5) / self.older
        return (at_end, -at_end - difference, difference)


def unipc(
    sigmas: Sequence[float] | NDArray[np.floating], samples: int, sign: float, whole_timesteps: bool = False
) -> Iterator[Update]:
    """Yield the updates of UniPC; the first and the last step are of order 1.

    Args:
        sigmas: (steps + 1,) noise levels, which fall; the first one is less than 1, and the last one may be 0.
        samples: number of prompts.
        sign: 1 where the velocity leads to the data, -1 where it leads to the noise.
        whole_timesteps: round the timesteps that the model gets down to whole numbers, as diffusers does; the noise
            levels stay as they are.
    """
    levels = np.asarray(sigmas, np.float32).astype(np.float64)  # the rounding belongs to the original's schedule
    with np.errstate(divide="ignore"):
        log_snr = np.log1p(-levels) - np.log(levels)
    steps = len(levels) - 1
    orders = [min(ORDER, index + 1, steps - index) for index in range(steps)]

    def interval(index: int) -> Interval:
        h = float(log_snr[index + 1] - log_snr[index])
        older = float(log_snr[index - 1] - log_snr[index]) / h if index else None
        there = float(levels[index + 1])
        return Interval(there / float(levels[index]), (there - 1) * math.expm1(-h), h, older)

    for index in range(steps):
        here = interval(index)
        by_age = [0.0] * HISTORY
        if index:
            for age, weight in enumerate(interval(index - 1).correction(orders[index - 1])):
                by_age[age] += here.kept * weight
        for age, weight in enumerate(here.predictor(orders[index])):
            by_age[age] += weight
        slot = index % HISTORY
        weights = {(slot - age) % HISTORY: weight for age, weight in enumerate(by_age)}
        timestep = float(sigmas[index]) * TRAIN_TIMESTEPS
        entry = (1.0, sign * float(levels[index]))
        yield uniform_update(
            math.floor(timestep) if whole_timesteps else timestep, slot, here.kept, weights, HISTORY, samples, entry
        )
