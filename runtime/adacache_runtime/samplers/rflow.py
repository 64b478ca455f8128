"""Samplers: which timesteps to evaluate, and how each prediction changes the latents.

Every update is linear, z' = a z + sum_k b_k v_k, over the velocities of the last calls, so one graph runs them all.
A sampler is a generator of :class:`Update`; it does no tensor arithmetic.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import Precision
from adacache_engines.errors import OutOfRangeError

Floats = NDArray[np.float32]
TRAIN_TIMESTEPS = 1000  # timestep of pure noise
REFERENCE_SIZE = 512  # pixels, of the timestep transform
CHUNK_FRAMES, CHUNK_LATENTS = 17, 5  # of Open-Sora's VAE


@dataclass(frozen=True)
class Update:
    """One call of the denoiser and what follows.

    Attributes:
        timestep: (samples,) float32, where the model is evaluated.
        slot: place in the history, of ``weights.shape[0]`` entries, that receives the call's velocity.
        scale: (samples,) float32, a.
        weights: (calls, samples) float32, b.
    """

    timestep: Floats
    slot: int
    scale: Floats
    weights: Floats


def condition_dtype(precision: Precision) -> np.dtype:
    """The type in which Open-Sora rounds sizes and timesteps: bfloat16 with bfloat16 weights.

    float16 could not hold height x width, so there, unlike the original, they stay float32.
    """
    return np.dtype(ml_dtypes.bfloat16 if precision == "bf16" else np.float32)


def transform_ratio(height: int, width: int, frames: int, dtype: np.dtype) -> np.generic:
    """By how much large and long videos shift timesteps to noise: sqrt(h w / 512^2) sqrt(latent chunks); 1 = not.

    Source: Open-Sora v1.2 ``schedulers/rf/rectified_flow.py``, after Stable Diffusion 3 (arXiv 2403.03206, eq. 23).

    Args:
        height, width: pixels.
        frames: pixel frames.
        dtype: in which the original evaluates it, see :func:`condition_dtype`.

    Raises:
        OutOfRangeError: ``frames`` is 2 to 16, for which the original's timesteps are NaN.
    """
    if 1 < frames < CHUNK_FRAMES:
        raise OutOfRangeError(
            f"{frames} frames have no timesteps: the model's schedule is defined for 1 frame (an image) and from "
            f"{CHUNK_FRAMES} frames on; choose one of these"
        )
    number = dtype.type
    area = number(height) * number(width) / number(REFERENCE_SIZE**2)
    chunks = number(1 if frames == 1 else frames // CHUNK_FRAMES * CHUNK_LATENTS)
    ratio: np.generic = np.sqrt(area) * np.sqrt(chunks)
    return ratio


def rflow_timesteps(steps: int, samples: int, ratio: np.generic | None = None) -> Floats:
    """Timesteps (steps, samples) from 1000 down, evenly spaced or shifted by :func:`transform_ratio`."""
    even = np.array([(1.0 - i / steps) * TRAIN_TIMESTEPS for i in range(steps)], np.float32)
    timesteps = np.repeat(even[:, None], samples, axis=1)
    if ratio is None:
        return timesteps
    u = timesteps / np.float32(TRAIN_TIMESTEPS)
    less_one = np.subtract(ratio, 1, dtype=ratio.dtype).astype(np.float32)
    shifted = ratio.astype(np.float32) * u / (np.float32(1) + less_one * u)
    transformed: Floats = (shifted * np.float32(TRAIN_TIMESTEPS)).astype(np.float32)
    return transformed


def rflow(timesteps: Floats) -> Iterator[Update]:
    """Euler steps of a rectified flow (arXiv 2209.03003): z' = z + v (t_i - t_{i+1}) / 1000, the last one to t = 0.

    ``timesteps`` (steps, samples), falling.
    """
    following = np.concatenate([timesteps[1:], np.zeros_like(timesteps[:1])])
    for here, there in zip(timesteps, following, strict=True):
        dt = (here - there) / np.float32(TRAIN_TIMESTEPS)
        yield Update(here, 0, np.ones_like(here), dt[None])


def check_steps(steps: int) -> None:
    """
    Raises:
        OutOfRangeError: fewer than 1 or more steps than timesteps.
    """
    if not 1 <= steps <= TRAIN_TIMESTEPS:
        raise OutOfRangeError(f"{steps} steps are not possible; choose 1 to {TRAIN_TIMESTEPS}")


def check_guidance(guidance: float) -> None:
    """
    Raises:
        OutOfRangeError: negative, infinite or NaN.
    """
    if not (math.isfinite(guidance) and 0 <= guidance <= 100):
        raise OutOfRangeError(f"guidance {guidance} is not possible; choose 0 to 100, 1 = none")
