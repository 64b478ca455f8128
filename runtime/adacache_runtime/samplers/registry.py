"""The samplers by the name that a manifest gives them, and the type of a model's conditions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adacache_engines.bundle.manifest import Manifest
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_runtime.samplers.ddim import ddim
from adacache_runtime.samplers.pndm import pndm
from adacache_runtime.samplers.rflow import rflow, rflow_timesteps, shift_ratio
from adacache_runtime.samplers.update import Update


@dataclass(frozen=True)
class Sampling:
    """A generation's demands on its sampler.

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


@dataclass(frozen=True)
class Sampler:
    """An entry of the registry.

    Attributes:
        updates: makes the updates of all calls.
        keeps_frames: data and noise are joined by a straight line, so that a frame that is given can be brought to any
            timestep, and be kept.
    """

    updates: Callable[[Manifest, Sampling], Iterator[Update]]
    keeps_frames: bool = False


def condition_dtype(manifest: Manifest) -> np.dtype:
    """Return the type to which timesteps, sizes and frames per second are rounded before the model gets them."""
    return NUMPY_DTYPES[manifest.sampler.condition_dtype]


def _rflow(manifest: Manifest, asked: Sampling) -> Iterator[Update]:
    shift, ratio = manifest.sampler.timestep_shift, None
    if shift is not None:
        ratio = shift_ratio(shift, asked.height, asked.width, asked.frames, condition_dtype(manifest))
    return rflow(rflow_timesteps(asked.steps, asked.samples, ratio))


SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Sampler(lambda _manifest, asked: ddim(asked.steps, asked.samples)),
    "pndm": Sampler(lambda _manifest, asked: pndm(asked.steps, asked.samples, asked.idle_call)),
    "rflow": Sampler(_rflow, keeps_frames=True),
}


def updates(
    manifest: Manifest, steps: int, samples: int, height: int, width: int, frames: int, idle_call: bool = False
) -> Sequence[Update]:
    """Return the updates of all calls of a generation; :class:`Sampling` describes the arguments.

    Raises:
        OutOfRangeError: the sampler cannot make so few or so many steps, or has no timesteps for this size.
    """
    asked = Sampling(steps, samples, height, width, frames, idle_call)
    return list(SAMPLERS[manifest.sampler.name].updates(manifest, asked))
