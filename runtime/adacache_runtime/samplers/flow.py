"""Noise levels of models that predict the velocity of a flow, and the shift of such levels.

The latents at noise level sigma are z = (1 - sigma) x + sigma e, x being the data and e noise; the timestep is
1000 sigma. A model may predict the velocity e - x, which leads to the noise, or x - e, which leads to the data.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import TimestepShift
from adacache_engines.errors import OutOfRangeError
from adacache_runtime.samplers.update import TRAIN_TIMESTEPS

LOWEST = 1 / TRAIN_TIMESTEPS  # the noise level, before any shift, at which diffusers' schedules end


def shifted(sigma: NDArray[np.floating] | np.floating, shift: np.floating) -> Any:
    """Return noise levels that are shifted towards noise (arXiv 2403.03206, eq. 23); a shift of 1 changes nothing.

    Args:
        sigma: noise level, or noise levels, from 1 (noise) to 0 (data).
        shift: ratio by which the odds of noise to data grow.

    Returns:
        The shifted levels, of the shape and dtype of ``sigma``.
    """
    one = shift.dtype.type(1)
    return shift * sigma / (one + (shift - one) * sigma)


def shift_ratio(shift: TimestepShift, height: int, width: int, frames: int, dtype: np.dtype) -> np.generic:
    """Return the ratio by which a video's size shifts timesteps towards noise; 1 = not at all.

    Source: Open-Sora v1.2 ``schedulers/rf/rectified_flow.py``, after Stable Diffusion 3 (arXiv 2403.03206, eq. 23).

    Args:
        shift: numbers of the model.
        height, width: size of the video in pixels.
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
