"""The samplers by name, and the calls that one makes for a bundle."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adacache_engines.bundle.manifest import Manifest
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_runtime.samplers.noise import ddim, pndm
from adacache_runtime.samplers.rflow import Update, rflow, rflow_timesteps, shift_ratio


@dataclass(frozen=True)
class Video:
    """What timesteps may depend on.

    Attributes:
        height, width: pixels of a frame.
        frames: number of frames.
        samples: number of prompts.
    """

    height: int
    width: int
    frames: int
    samples: int


@dataclass(frozen=True)
class Sampler:
    """A sampler.

    Attributes:
        updates: makes all calls of a generation, of a manifest, a number of steps, a video, and whether the original's
            call that changes nothing is made, too.
        keeps_frames: between data and noise lies a straight line, so that a frame that is given can be brought to any
            timestep, and be kept.
    """

    updates: Callable[[Manifest, int, Video, bool], Sequence[Update]]
    keeps_frames: bool = False


def condition_dtype(manifest: Manifest) -> np.dtype:
    """Return the type to which timesteps, sizes and frames per second are rounded."""
    return NUMPY_DTYPES[manifest.sampler.condition_dtype]


def updates(
    manifest: Manifest, steps: int, samples: int, height: int, width: int, frames: int, idle_call: bool = False
) -> Sequence[Update]:
    """Return all calls of a generation; sizes in pixels.

    Raises:
        OutOfRangeError: the sampler cannot make so few or so many steps, or has no timesteps for this size.
    """
    return SAMPLERS[manifest.sampler.name].updates(manifest, steps, Video(height, width, frames, samples), idle_call)


def _rflow(manifest: Manifest, steps: int, video: Video, _idle_call: bool) -> Sequence[Update]:
    shift, ratio = manifest.sampler.timestep_shift, None
    if shift is not None:
        ratio = shift_ratio(shift, video.height, video.width, video.frames, condition_dtype(manifest))
    return list(rflow(rflow_timesteps(steps, video.samples, ratio)))


def _ddim(_manifest: Manifest, steps: int, video: Video, _idle_call: bool) -> Sequence[Update]:
    return list(ddim(steps, video.samples))


def _pndm(_manifest: Manifest, steps: int, video: Video, idle_call: bool) -> Sequence[Update]:
    return list(pndm(steps, video.samples, idle_call))


SAMPLERS: Mapping[str, Sampler] = {
    "rflow": Sampler(_rflow, keeps_frames=True),
    "ddim": Sampler(_ddim),
    "pndm": Sampler(_pndm),
}
