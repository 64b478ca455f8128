"""The samplers by their names, the choice of one for a generation, and the type of a model's conditions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adacache_engines.bundle.manifest import Manifest, TimestepShift
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.errors import InputError
from adacache_runtime.samplers.ddim import ddim
from adacache_runtime.samplers.euler import euler, euler_sigmas
from adacache_runtime.samplers.flow import shift_ratio
from adacache_runtime.samplers.pndm import pndm
from adacache_runtime.samplers.rflow import rflow, rflow_timesteps
from adacache_runtime.samplers.unipc import unipc, unipc_sigmas
from adacache_runtime.samplers.update import Update

SIGNS = {"to-data": 1.0, "to-noise": -1.0}  # direction of a velocity -> its sign on the way to the data


@dataclass(frozen=True)
class Sampling:
    """A generation's demands on its sampler.

    Attributes:
        steps: number of steps.
        samples: number of prompts.
        height, width: size of the video in pixels.
        frames: number of pixel frames.
        idle_call: make the call, too, with which PNDM originally ends and which changes nothing.
        sampler: name of the sampler; None = the bundle's.
    """

    steps: int
    samples: int
    height: int
    width: int
    frames: int
    idle_call: bool = False
    sampler: str | None = None


@dataclass(frozen=True)
class Sampler:
    """An entry of the registry.

    Attributes:
        updates: function that makes the updates of all calls.
        predicts: quantity that the model predicts: the ``noise`` in its input, or the velocity of a ``flow``. On a
            flow, data and noise are joined by a straight line, so that a frame that is given can be brought to any
            timestep, and be kept.
        multistep: whether an update uses what earlier calls gave.
    """

    updates: Callable[[Manifest, Sampling], Iterator[Update]]
    predicts: Literal["noise", "flow"]
    multistep: bool = False


def condition_dtype(manifest: Manifest) -> np.dtype:
    """Return the type to which timesteps, sizes and frames per second are rounded before the model gets them."""
    return NUMPY_DTYPES[manifest.sampler.condition_dtype]


def _shift(manifest: Manifest, asked: Sampling) -> np.generic | None:
    """Return the ratio by which timesteps are shifted towards noise; None = not at all."""
    shift, dtype = manifest.sampler.timestep_shift, condition_dtype(manifest)
    if isinstance(shift, TimestepShift):
        return shift_ratio(shift, asked.height, asked.width, asked.frames, dtype)
    return None if shift is None else np.float64(shift)


def _rflow(manifest: Manifest, asked: Sampling) -> Iterator[Update]:
    timesteps = rflow_timesteps(asked.steps, asked.samples, _shift(manifest, asked))
    return rflow(timesteps, SIGNS[manifest.sampler.velocity])


def _euler(manifest: Manifest, asked: Sampling) -> Iterator[Update]:
    sigmas = euler_sigmas(asked.steps, float(_shift(manifest, asked) or 1))
    return euler(sigmas, asked.samples, SIGNS[manifest.sampler.velocity])


def _unipc(manifest: Manifest, asked: Sampling) -> Iterator[Update]:
    sigmas = unipc_sigmas(asked.steps, float(_shift(manifest, asked) or 1))
    return unipc(sigmas, asked.samples, SIGNS[manifest.sampler.velocity], manifest.sampler.whole_timesteps)


SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Sampler(lambda _manifest, asked: ddim(asked.steps, asked.samples), "noise"),
    "pndm": Sampler(lambda _manifest, asked: pndm(asked.steps, asked.samples, asked.idle_call), "noise", True),
    "rflow": Sampler(_rflow, "flow"),
    "euler": Sampler(_euler, "flow"),
    "unipc": Sampler(_unipc, "flow", True),
}


def samplers_of(manifest: Manifest) -> tuple[str, ...]:
    """Return the names of the samplers that fit what a bundle's model predicts."""
    predicts = SAMPLERS[manifest.sampler.name].predicts
    return tuple(name for name, sampler in SAMPLERS.items() if sampler.predicts == predicts)


def sampler_name(manifest: Manifest, asked: str | None) -> str:
    """Return the name of the sampler of a generation; ``asked`` is the name that a request gives, None without one.

    Raises:
        InputError: there is no such sampler, or it is for models that predict something else.
    """
    name, fitting = asked or manifest.sampler.name, samplers_of(manifest)
    if name not in fitting:
        raise InputError(f"sampler {name} is not possible with this model; choose one of {', '.join(fitting)}")
    return name


def updates(
    manifest: Manifest,
    steps: int,
    samples: int,
    height: int,
    width: int,
    frames: int,
    idle_call: bool = False,
    sampler: str | None = None,
) -> Sequence[Update]:
    """Return the updates of all calls of a generation; :class:`Sampling` describes the arguments.

    Raises:
        InputError: there is no such sampler, or it is for models that predict something else.
        OutOfRangeError: the sampler cannot make so few or so many steps, or has no timesteps for this size.
    """
    asked = Sampling(steps, samples, height, width, frames, idle_call, sampler)
    return list(SAMPLERS[sampler_name(manifest, sampler)].updates(manifest, asked))
