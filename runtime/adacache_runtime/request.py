"""The request for one generation, as plain values."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import InputError
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.caching.policy import Granularity, Policy, Scope
from adacache_runtime.media.frames import ClipSource, ImageSource
from adacache_runtime.text.captions import Captions as Captions

MAX_SEED = 2**63 - 1

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One generation: a batch of prompts that share size, length and schedule.

    A single value stands for a sequence of one wherever a sequence is expected, so ``prompts="a boat"`` is one prompt.

    Attributes:
        prompts: texts, for a bundle with a text encoder. A prompt such as ``|0|rain|8|sun`` changes with the loop, see
            ``loops``.
        captions: states from a text encoder of one's own, instead of prompts.
        negative_prompts: one for all prompts, or one each, for a model that is guided by them; none = empty ones.
        aesthetic, motion, camera: scores and a camera motion that are appended to each prompt, for a model that was
            trained with them.
        height, width: size of the video in pixels; None = the bundle's default.
        frames: number of frames of the video; 1 = an image; None = the bundle's default.
        fps: frames per second, one for all prompts or one each; None = the bundle's default.
        steps, guidance: sampling steps and guidance scale; None = the bundle's defaults.
        guidance_2: guidance scale of the second expert, for a model that has two; None = ``guidance`` where that is
            given, else the bundle's default.
        sampler: name of the sampler, one that fits what the model predicts; None = the bundle's.
        seed: seed of the initial noise.
        images: images that are frames of the video, or the one that it starts from where the model needs that: paths,
            Pillow images, or arrays (height, width, 3) uint8 RGB.
        image_at: frame of the video for each image, from 0, or from -1 at the end; a single image is frame 0 unless it
            is told otherwise.
        clip: a clip that the video continues: a path, or an array (frames, height, width, 3) uint8 RGB. The video
            begins with its last frames.
        edit_ratio: 0 = images and clip are kept as they are; the nearer to 1, the more of them may change.
        loops: number of clips that continue one another, as one video; the seed counts up.
        latents: the initial noise (prompts, channels, frames, height, width) float32, instead of the seed's; the size
            then is only a condition of the model and need not match its shape.
        mask: mask of the frames of ``latents`` that are kept, (prompts, latent frames) float32: 1 = generate, 0 = keep,
            in between the edit ratio, see :mod:`adacache_runtime.conditioning.masks`.
        noise: with ``mask``: the noise that frames with an edit ratio take when they join, (steps, prompts, channels,
            frames, height, width) float32, all of it for each step; None = the seed's.
        video_condition: for a model that starts from an image: the mask and the encoded video that it takes beside its
            latents, (channels, latent frames, height, width) float32, instead of the image.
        image_square: for a model that attends to states of the image: the part of it that the image encoder sees,
            (side, side, 3) uint8 RGB, where the image is given at another size than its own; None = that of the image.
        image_states: for a model that attends to states of the image: those of an image encoder of one's own, (states,
            width) float32.
        policy: decides which calls compute which groups.
        granularity: groups that share a residual: one of the whole ``model``, from latents to velocity; one of the
            ``stack`` of all blocks; one of the ``first`` block and one of the others; one a ``block``; or one a
            ``module`` of it where the bundle has such stages. None = the one that the policy asks for.
        scope: whether the ``batch`` decides as one, or each ``prompt`` for itself and the most cautious for all.
        keep_calls: also keep the latents before each call.
        idle_call: also make the call with which PNDM originally ends and which changes nothing.
        tile: side in pixels of the tiles by which larger frames are coded; None = the bundle's.
    """

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    prompts: tuple[str, ...] = ()
    captions: Captions | None = None
    negative_prompts: tuple[str, ...] = ()
    aesthetic: float | None = None
    motion: float | None = None
    camera: str | None = None
    fps: tuple[float, ...] | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_2: float | None = None
    sampler: str | None = None
    seed: int = 0
    images: tuple[ImageSource, ...] = ()
    image_at: tuple[int, ...] = ()
    clip: ClipSource | None = None
    edit_ratio: float = 0.0
    loops: int = 1
    latents: NDArray[np.float32] | None = None
    mask: NDArray[np.float32] | None = None
    noise: NDArray[np.float32] | None = None
    video_condition: NDArray[np.float32] | None = None
    image_square: NDArray[np.uint8] | None = None
    image_states: NDArray[np.float32] | None = None
    policy: Policy[Any] = field(default_factory=NeverReuse)
    granularity: Granularity | None = None
    scope: Scope = "batch"
    keep_calls: bool = False
    idle_call: bool = False
    tile: int | None = None

    def __post_init__(self) -> None:
        """Turn single values and lists into tuples, so that no text is ever iterated letter by letter.

        Raises:
            InputError: a prompt is no string.
        """
        for name in ("prompts", "negative_prompts", "images", "image_at", "fps"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, several(value))
        for name in ("prompts", "negative_prompts"):
            for text in getattr(self, name) or ():
                if not isinstance(text, str):
                    kind = type(text).__name__
                    raise InputError(f"{name} have {text!r} of type {kind}; give a string, or a list of strings")


def several(value: T | Iterable[T]) -> tuple[T, ...]:
    """Return a tuple of one value, or of the values of a list or tuple.

    Text, paths and images are single values, although text and arrays can be iterated.
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | os.PathLike):
        return tuple(value)
    return (value,)  # type: ignore[return-value]
