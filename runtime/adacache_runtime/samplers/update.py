"""The linear update that follows a call of the denoiser, which every sampler consists of.

A call gives a velocity v for the latents z. A short history then receives h = c z + d v, and the latents move to
z' = a z + sum_k b_k h_k. A sampler is a generator of such updates; it does no tensor arithmetic.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import OutOfRangeError

Floats = NDArray[np.float32]
TRAIN_TIMESTEPS = 1000  # timestep of pure noise


@dataclass(frozen=True)
class Update:
    """The timestep of one call of the denoiser, and the coefficients of the update that follows it.

    With c = 0 and d = 1, the default, the history holds velocities: RFLOW, DDIM and PNDM. With c = 1 and d = -sigma it
    holds predictions of the data, as UniPC needs it.

    Attributes:
        timestep: (samples,) float32, where the model is evaluated, from 1000 (noise) to 0 (data).
        slot: index in the history, of ``weights.shape[0]`` entries, that receives h = c z + d v.
        scale: (samples,) float32, a.
        weights: (history, samples) float32, b.
        kept_latents: (samples,) float32, c; None = 0.
        kept_velocity: (samples,) float32, d; None = 1.
    """

    timestep: Floats
    slot: int
    scale: Floats
    weights: Floats
    kept_latents: Floats | None = None
    kept_velocity: Floats | None = None

    @property
    def keeps_velocity(self) -> bool:
        """Whether the history receives the velocity as it is, so that nothing has to be computed for it."""
        if self.kept_latents is None and self.kept_velocity is None:
            return True
        c, d = self.entry()
        return not c.any() and bool((d == 1).all())

    def entry(self) -> tuple[Floats, Floats]:
        """Return c and d, (samples,) each, of the entry h = c z + d v that the history receives."""
        c = np.zeros_like(self.scale) if self.kept_latents is None else self.kept_latents
        d = np.ones_like(self.scale) if self.kept_velocity is None else self.kept_velocity
        return c, d


def uniform_update(
    timestep: float,
    slot: int,
    scale: float,
    weights: Mapping[int, float],
    history: int,
    samples: int,
    entry: tuple[float, float] | None = None,
) -> Update:
    """Return an update that has the same coefficients for all samples.

    Args:
        timestep: timestep of the call.
        slot: index in the history that receives the call's entry.
        scale: a.
        weights: b by index in the history; 0 where there is none.
        history: number of entries of the history.
        samples: number of prompts.
        entry: c and d; None = the history receives the velocity.
    """

    def each(value: float) -> Floats:
        return np.full(samples, value, np.float32)

    values = np.zeros((history, samples), np.float32)
    for place, weight in weights.items():
        values[place] = weight
    return Update(each(timestep), slot, each(scale), values, *(() if entry is None else map(each, entry)))


def check_steps(steps: int) -> None:
    """Refuse a number of steps that no sampler can make.

    Raises:
        OutOfRangeError: there are fewer than 1 or more steps than timesteps.
    """
    if not 1 <= steps <= TRAIN_TIMESTEPS:
        raise OutOfRangeError(f"{steps} steps are not possible; choose 1 to {TRAIN_TIMESTEPS}")


def check_guidance(guidance: float) -> None:
    """Refuse a guidance scale that makes no sense.

    Raises:
        OutOfRangeError: the scale is negative, infinite, NaN or more than 100.
    """
    if not (math.isfinite(guidance) and 0 <= guidance <= 100):
        raise OutOfRangeError(f"guidance {guidance} is not possible; choose 0 to 100, 1 = none")
