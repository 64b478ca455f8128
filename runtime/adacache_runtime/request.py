"""What a user asks for, checked against a bundle, as the arrays that the model takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle import Bundle, Manifest
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_engines.shape_profiles import check_profiles
from adacache_runtime.loop import SCOPES, Scope
from adacache_runtime.plan import GRANULARITIES, Granularity
from adacache_runtime.policies.never import NeverReuse
from adacache_runtime.policy import Policy
from adacache_runtime.samplers import check_guidance, check_steps

MAX_SEED = 2**63 - 1
VIDEO_FPS = 24.0
IMAGE_FPS = 120.0  # what Open-Sora was trained to take a single frame for


@dataclass(frozen=True)
class Captions:
    """A text encoder's states.

    Attributes:
        embeddings: (prompts, length, width) float32.
        mask: (prompts, length) bool, True = a token; the others are ignored.
    """

    embeddings: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Request:
    """One generation: a batch of prompts that share size, length and schedule.

    Attributes:
        prompts: texts, for a bundle with a text encoder; or
        captions: their states from an encoder of one's own.
        height, width: pixels; None = the bundle's default.
        frames: of the video; 1 = an image; None = the bundle's default.
        fps: frames per second, one for all prompts or one each; None = 24, or 120 for an image.
        steps, guidance: None = the bundle's defaults.
        seed: of the initial noise.
        latents: the initial noise (prompts, channels, frames, height, width) float32, instead of the seed's; the size
            then is only a condition of the model and need not match its shape.
        policy: which calls to compute.
        granularity: of cached residuals: one of the whole ``stack``, or one a ``block``.
        scope: whether the ``batch`` decides as one, or each ``prompt`` for itself and the most cautious for all.
        keep_calls: keep the latents before each call, too.
    """

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    prompts: tuple[str, ...] = ()
    captions: Captions | None = None
    fps: tuple[float, ...] | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    latents: NDArray[np.float32] | None = None
    policy: Policy[Any] = field(default_factory=NeverReuse)
    granularity: Granularity = "stack"
    scope: Scope = "batch"
    keep_calls: bool = False


@dataclass(frozen=True)
class Settled:
    """A request with every default filled in and every number checked."""

    samples: int
    height: int
    width: int
    frames: int
    latents: NDArray[np.float32]
    fps: NDArray[np.float32]  # (samples,)
    steps: int
    guidance: float
    sizes: Mapping[str, int]  # of the dynamic axes, text excepted


def settle(bundle: Bundle, request: Request) -> Settled:
    """Checks a request before anything is allocated.

    Raises:
        OutOfRangeError: a number or size is outside what the model or the bundle's profiles allow.
        InputError: prompts, captions and latents do not belong together.
    """
    manifest = bundle.manifest
    samples = _samples(manifest, request)
    steps = manifest.sampler.steps if request.steps is None else request.steps
    guidance = manifest.sampler.guidance if request.guidance is None else request.guidance
    check_steps(steps)
    check_guidance(guidance)
    video = {
        name: getattr(manifest.video if getattr(request, name) is None else request, name)
        for name in ("height", "width", "frames")
    }
    for name, value in video.items():
        if value < 1:
            raise OutOfRangeError(f"{name} {value} is not possible; choose at least 1")
    for value, known in ((request.granularity, GRANULARITIES), (request.scope, SCOPES)):
        if value not in known:
            raise InputError(f"{value!r} is unknown; choose one of {', '.join(known)}")
    if not 0 <= request.seed <= MAX_SEED:
        raise OutOfRangeError(f"seed {request.seed} is not possible; choose 0 to {MAX_SEED}")
    shape = _latent_shape(manifest, request, samples, **video)
    axes = dict(zip(("frames", "height", "width"), shape[2:], strict=True))
    check_profiles(manifest, {"samples": samples, **axes})
    batch = {"samples": samples, "batch": samples * len(manifest.guidance.order)}
    return Settled(
        samples=samples,
        **video,
        latents=_noise(request, shape),
        fps=_fps(request, video["frames"], samples),
        steps=steps,
        guidance=guidance,
        sizes={**axes, **manifest.latent.token_axes(**axes), **batch},
    )


def _samples(manifest: Manifest, request: Request) -> int:
    if (request.captions is None) == (not request.prompts):
        raise InputError("give either prompts or the embeddings of an encoder of your own, and not both")
    if request.captions is None:
        return len(request.prompts)
    embeddings, mask = request.captions.embeddings, request.captions.mask
    rule = manifest.text
    if embeddings.ndim != 3 or embeddings.shape[2] != rule.width or not embeddings.shape[0]:
        raise InputError(f"text embeddings have shape {embeddings.shape}; expected (prompts, length, {rule.width})")
    if not 1 <= embeddings.shape[1] <= rule.max_length:
        raise InputError(f"text embeddings have length {embeddings.shape[1]}; this model takes 1 to {rule.max_length}")
    if mask.shape != embeddings.shape[:2]:
        raise InputError(f"the text mask has shape {mask.shape}; expected {embeddings.shape[:2]}")
    if not mask.any(axis=1).all():
        raise InputError("the text mask of a prompt is all false; at least one token must count")
    if not _fits_float32(embeddings):
        raise InputError("the text embeddings contain NaN, infinity or numbers beyond float32; check the encoder")
    return int(embeddings.shape[0])


def _latent_shape(
    manifest: Manifest, request: Request, samples: int, height: int, width: int, frames: int
) -> tuple[int, ...]:
    """(samples, channels, frames, height, width), that of the given latents if there are any."""
    latent = manifest.latent
    if request.latents is not None:
        given = request.latents.shape
        if len(given) != 5 or given[:2] != (samples, latent.channels):
            raise InputError(
                f"latents have shape {given}; expected ({samples}, {latent.channels}, frames, height, width)"
            )
        return given
    size = (height // latent.spatial_factor, width // latent.spatial_factor)
    if min(size) < 1:
        raise OutOfRangeError(f"{height}x{width} pixels are too few; choose at least {latent.spatial_factor} each way")
    return (samples, latent.channels, latent.latent_frames(frames), *size)


def _noise(request: Request, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The given latents, or the seed's."""
    if request.latents is None:
        return np.random.default_rng(request.seed).standard_normal(shape, np.float32)
    if not _fits_float32(request.latents):
        raise InputError("the initial latents contain NaN, infinity or numbers beyond float32")
    return np.ascontiguousarray(request.latents, np.float32)


def _fits_float32(values: NDArray[Any]) -> bool:
    return bool((np.abs(values) <= np.finfo(np.float32).max).all())  # False for NaN


def _fps(request: Request, frames: int, samples: int) -> NDArray[np.float32]:
    fps: Sequence[float] = request.fps or ((IMAGE_FPS,) if frames == 1 else (VIDEO_FPS,))
    if len(fps) not in (1, samples):
        raise InputError(f"{len(fps)} values of fps for {samples} prompts; give one, or one each")
    if not all(0 < value <= 1000 for value in fps):
        raise OutOfRangeError(f"fps {', '.join(map(str, fps))} is not possible; choose more than 0, at most 1000")
    return np.broadcast_to(np.array(fps, np.float32), (samples,)).copy()
