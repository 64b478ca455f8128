"""Samplers: which timesteps to evaluate, and how each prediction changes the latents.

Every update is linear, z' = a z + sum_k b_k v_k, over the velocities of the last calls, so one graph runs them all.
A sampler is a generator of :class:`Update`; it does no tensor arithmetic.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import TimestepShift
from adacache_engines.errors import OutOfRangeError

Floats = NDArray[np.float32]
TRAIN_TIMESTEPS = 1000  # timestep of pure noise


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


def shift_ratio(shift: TimestepShift, height: int, width: int, frames: int, dtype: np.dtype) -> np.generic:
    """Return the ratio by which a video's size shifts timesteps towards noise; 1 = not at all.

    Source: Open-Sora v1.2 ``schedulers/rf/rectified_flow.py``, after Stable Diffusion 3 (arXiv 2403.03206, eq. 23).

    Args:
        shift: numbers of the model.
        height, width: pixels of a frame.
        frames: number of frames of the video.
        dtype: type in which the ratio is evaluated, that of the model's conditions.

    Raises:
        OutOfRangeError: ``frames`` are more than one and less than a chunk, for which the original's timesteps are NaN.
    """
    if 1 < frames < shift.chunk_frames:
        raise OutOfRangeError(
            f"{frames} frames have no timesteps: the model's schedule is defined for 1 frame (an image) and from "
            f"{shift.chunk_frames} frames on; choose one of these"
        )
    number = dtype.type
    area = number(height) * number(width) / number(shift.reference_pixels)
    chunks = number(1 if frames == 1 else frames // shift.chunk_frames * shift.chunk_latents)
    ratio: np.generic = np.sqrt(area) * np.sqrt(chunks)
    return ratio


def rflow_timesteps(steps: int, samples: int, ratio: np.generic | None = None) -> Floats:
    """Timesteps (steps, samples) from 1000 down, evenly spaced or shifted by :func:`shift_ratio`."""
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
