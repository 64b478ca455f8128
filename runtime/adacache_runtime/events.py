"""Events that a generation yields while it runs, in this order; each is a small frozen value."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adacache_runtime.media.frames import Frames
from adacache_runtime.trace import CallRecord, Trace


@dataclass(frozen=True)
class ImagesEncoded:
    """The images and the clip that the video contains or starts from are latents; not yielded where there are none.

    Attributes:
        count: number of images and clips.
    """

    count: int


@dataclass(frozen=True)
class TextEncoded:
    """The prompts are captions, and the calls of the denoiser come next. Each loop yields one."""


@dataclass(frozen=True)
class Called:
    """One call of the denoiser is over.

    Attributes:
        record: its record; calls are numbered from 1 through all loops.
        total: number of calls of the generation.
    """

    record: CallRecord
    total: int


@dataclass(frozen=True, eq=False)
class Denoised:
    """All calls are over, and what they took of the device is free.

    Attributes:
        latents: (prompts, channels, frames, height, width) float32.
        trace: trace of all calls.
        calls: (calls, prompts, ...) the latents before each call, if they were asked for.
    """

    latents: NDArray[np.float32]
    trace: Trace
    calls: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Decoded:
    """Some frames of one video are decoded; not yielded where the bundle has no decoder.

    Attributes:
        prompt: index of the prompt that the video belongs to, from 0.
        frames: (some frames, height, width, 3) uint8 RGB, which follow those of the event before.
        done: number of frames of all videos that are decoded so far.
        total: number of frames of all videos.
    """

    prompt: int
    frames: Frames
    done: int
    total: int


Event = ImagesEncoded | TextEncoded | Called | Denoised | Decoded
