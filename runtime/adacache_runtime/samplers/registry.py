"""The samplers by the name that a manifest gives them, and the type of a model's conditions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adacache_engines.bundle.manifest import Manifest
from adacache_runtime.samplers.ddim import ddim
from adacache_runtime.samplers.pndm import pndm
from adacache_runtime.samplers.rflow import condition_dtype, rflow, rflow_timesteps, transform_ratio
from adacache_runtime.samplers.update import Update


@dataclass(frozen=True)
class Sampling:
    """What a generation asks of its sampler.

    Attributes:
        steps: number of steps.
        samples: number of prompts.
        height, width: size of the video in pixels.
        frames: number of pixel frames.
        idle_call: make the call, too, with which PNDM originally ends and which changes nothing.
    """

    steps: int
    samples: int
    height: int
    width: int
    frames: int
    idle_call: bool = False


def dtype_of_conditions(manifest: Manifest) -> np.dtype:
    """Return the type to which timesteps and sizes are rounded before the model gets them."""
    return condition_dtype(manifest.precision if manifest.sampler.rounds_conditions else "fp32")


def _rflow(manifest: Manifest, asked: Sampling) -> Iterator[Update]:
    ratio = None
    if manifest.sampler.timestep_transform:
        ratio = transform_ratio(asked.height, asked.width, asked.frames, dtype_of_conditions(manifest))
    return rflow(rflow_timesteps(asked.steps, asked.samples, ratio))


SAMPLERS: Mapping[str, Callable[[Manifest, Sampling], Iterator[Update]]] = {
    "ddim": lambda _manifest, asked: ddim(asked.steps, asked.samples),
    "pndm": lambda _manifest, asked: pndm(asked.steps, asked.samples, asked.idle_call),
    "rflow": _rflow,
}


def updates(
    manifest: Manifest, steps: int, samples: int, height: int, width: int, frames: int, idle_call: bool = False
) -> Sequence[Update]:
    """Return the updates of all calls of a generation; :class:`Sampling` describes the arguments.

    Raises:
        OutOfRangeError: the sampler cannot make so few or so many steps, or has no timesteps for this size.
    """
    asked = Sampling(steps, samples, height, width, frames, idle_call)
    return list(SAMPLERS[manifest.sampler.name](manifest, asked))
