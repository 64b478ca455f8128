"""How a bundle's model is sampled: its sampler by name, and the type of its conditions."""

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from adacache_engines.bundle import Manifest
from adacache_runtime.noise_samplers import ddim, pndm
from adacache_runtime.samplers import Update, rflow, rflow_timesteps, transform_ratio


def condition_dtype(manifest: Manifest) -> np.dtype:
    """The type in which Open-Sora rounds sizes and timesteps: bfloat16 with bfloat16 weights.

    float16 could not hold height x width, so there, unlike the original, they stay float32.
    """
    rounds = manifest.sampler.rounds_conditions and manifest.precision == "bf16"
    return np.dtype(ml_dtypes.bfloat16 if rounds else np.float32)


def updates(
    manifest: Manifest, steps: int, samples: int, height: int, width: int, frames: int, idle_call: bool = False
) -> Sequence[Update]:
    """All calls of a generation; sizes in pixels.

    Raises:
        OutOfRangeError: the sampler cannot make so few or so many steps, or has no timesteps for this size.
    """
    if manifest.sampler.name == "ddim":
        return list(ddim(steps, samples))
    if manifest.sampler.name == "pndm":
        return list(pndm(steps, samples, idle_call))
    ratio = None
    if manifest.sampler.timestep_transform:
        ratio = transform_ratio(height, width, frames, condition_dtype(manifest))
    return list(rflow(rflow_timesteps(steps, samples, ratio)))
