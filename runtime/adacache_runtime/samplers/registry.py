"""How a bundle's model is sampled: its sampler by name, and the type of its conditions."""

from collections.abc import Sequence

import numpy as np

from adacache_engines.bundle.manifest import Manifest
from adacache_runtime.samplers.noise import ddim, pndm
from adacache_runtime.samplers.rflow import Update, condition_dtype, rflow, rflow_timesteps, transform_ratio


def dtype_of_conditions(manifest: Manifest) -> np.dtype:
    """The type to which timesteps and sizes are rounded."""
    return condition_dtype(manifest.precision if manifest.sampler.rounds_conditions else "fp32")


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
        ratio = transform_ratio(height, width, frames, dtype_of_conditions(manifest))
    return list(rflow(rflow_timesteps(steps, samples, ratio)))
