"""RFLOW: Euler steps of a rectified flow (arXiv 2209.03003), and the timesteps at which they are made."""

from collections.abc import Iterator

import numpy as np

from adacache_runtime.samplers.update import TRAIN_TIMESTEPS, Floats, Update


def rflow_timesteps(steps: int, samples: int, ratio: np.generic | None = None) -> Floats:
    """Return timesteps (steps, samples) float32 from 1000 down: evenly spaced, or shifted towards noise by a ratio."""
    even = np.array([(1.0 - i / steps) * TRAIN_TIMESTEPS for i in range(steps)], np.float32)
    timesteps = np.repeat(even[:, None], samples, axis=1)
    if ratio is None:
        return timesteps
    u = timesteps / np.float32(TRAIN_TIMESTEPS)
    less_one = np.subtract(ratio, 1, dtype=ratio.dtype).astype(np.float32)
    shifted = ratio.astype(np.float32) * u / (np.float32(1) + less_one * u)
    transformed: Floats = (shifted * np.float32(TRAIN_TIMESTEPS)).astype(np.float32)
    return transformed


def rflow(timesteps: Floats, sign: float = 1.0) -> Iterator[Update]:
    """Yield the updates z' = z + sign v (t_i - t_{i+1}) / 1000, the last one to t = 0.

    Args:
        timesteps: (steps, samples), which fall.
        sign: 1 where the velocity leads to the data, -1 where it leads to the noise.
    """
    following = np.concatenate([timesteps[1:], np.zeros_like(timesteps[:1])])
    for here, there in zip(timesteps, following, strict=True):
        dt = (here - there) / np.float32(TRAIN_TIMESTEPS)
        yield Update(here, 0, np.ones_like(here), np.float32(sign) * dt[None])
