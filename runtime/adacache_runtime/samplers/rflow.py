"""RFLOW: Euler steps of a rectified flow (arXiv 2209.03003), and the timesteps at which they are made."""

from collections.abc import Iterator

import numpy as np

from adacache_engines.bundle.manifest import TimestepShift
from adacache_engines.errors import OutOfRangeError
from adacache_runtime.samplers.update import TRAIN_TIMESTEPS, Floats, Update


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


def rflow_timesteps(steps: int, samples: int, ratio: np.generic | None = None) -> Floats:
    """Return timesteps (steps, samples) float32 from 1000 down, evenly spaced or shifted by :func:`shift_ratio`."""
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
    """Yield the updates z' = z + v (t_i - t_{i+1}) / 1000, the last one to t = 0.

    ``timesteps`` (steps, samples) fall.
    """
    following = np.concatenate([timesteps[1:], np.zeros_like(timesteps[:1])])
    for here, there in zip(timesteps, following, strict=True):
        dt = (here - there) / np.float32(TRAIN_TIMESTEPS)
        yield Update(here, 0, np.ones_like(here), dt[None])
