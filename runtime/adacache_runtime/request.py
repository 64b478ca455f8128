"""What a user asks for, checked against a bundle, as the arrays that the model takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Manifest, TextRule, VideoDefaults
from adacache_engines.bundle.shape_profiles import check_profiles
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_runtime.caching.groups import granularities, group_stages, run_of
from adacache_runtime.caching.measures import resolve
from adacache_runtime.caching.policies.never import NeverReuse
from adacache_runtime.caching.policy import GRANULARITIES, SCOPES, Granularity, Measure, Policy, Run, Scope
from adacache_runtime.conditioning.masks import Masking, check_mask, masking
from adacache_runtime.samplers.registry import updates
from adacache_runtime.samplers.update import Update, check_guidance, check_steps
from adacache_runtime.vae.tiles import check_tile

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Captions:
    """A text encoder's states.

    Attributes:
        embeddings: (prompts, length, width) float32.
        mask: (prompts, length) bool, True = a token; the others are ignored.
        negative: (prompts, length, width) float32, of the negative prompts, for a model that is guided by them; the
            length may be another one.
    """

    embeddings: NDArray[np.float32]
    mask: NDArray[np.bool_]
    negative: NDArray[np.float32] | None = None

    def first(self, count: int) -> "Captions":
        """Those of the first prompts."""
        negative = None if self.negative is None else self.negative[:count]
        return Captions(self.embeddings[:count], self.mask[:count], negative)


@dataclass(frozen=True)
class Request:
    """One generation: a batch of prompts that share size, length and schedule.

    Attributes:
        prompts: texts, for a bundle with a text encoder; or
        captions: their states from an encoder of one's own.
        negative_prompts: one for all prompts, or one each, for a model that is guided by them; none = empty ones.
        height, width: pixels; None = the bundle's default.
        frames: of the video; 1 = an image; None = the bundle's default.
        fps: frames per second, one for all prompts or one each; None = the bundle's default.
        steps, guidance: None = the bundle's defaults.
        seed: of the initial noise.
        latents: the initial noise (prompts, channels, frames, height, width) float32, instead of the seed's; the size
            then is only a condition of the model and need not match its shape.
        mask: which frames of ``latents`` to keep, (prompts, latent frames) float32: 1 = generate, 0 = keep, in between
            the edit ratio, see :mod:`adacache_runtime.conditioning.masks`.
        noise: with ``mask``: what frames with an edit ratio take when they join, (steps, prompts, channels, frames,
            height, width) float32, all of it for each step; None = the seed's.
        policy: which calls to compute.
        granularity: of cached residuals: one of the whole ``model``, from latents to velocity; one of the ``stack`` of
            all blocks; one of the ``first`` block and one of the others; one a ``block``; or one a ``module`` of it
            where the bundle has such stages. None = what the policy asks for.
        scope: whether the ``batch`` decides as one, or each ``prompt`` for itself and the most cautious for all.
        keep_calls: keep the latents before each call, too.
        idle_call: make the call, too, with which PNDM originally ends and which changes nothing.
        tile: pixels, side of the tiles that larger frames are to be coded by; None = what the bundle says.
    """

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    prompts: tuple[str, ...] = ()
    captions: Captions | None = None
    negative_prompts: tuple[str, ...] = ()
    fps: tuple[float, ...] | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    latents: NDArray[np.float32] | None = None
    mask: NDArray[np.float32] | None = None
    noise: NDArray[np.float32] | None = None
    policy: Policy[Any] = field(default_factory=NeverReuse)
    granularity: Granularity | None = None
    scope: Scope = "batch"
    keep_calls: bool = False
    idle_call: bool = False
    tile: int | None = None


@dataclass(frozen=True)
class Settled:
    """A request with every default filled in and every number checked.

    Attributes:
        updates: the sampler's calls.
        masking: which frames they keep; None = none.
        granularity: of cached residuals.
        measures: of the policy, in the order of execution.
        run: that the policy is told of.
    """

    samples: int
    height: int
    width: int
    frames: int
    latents: NDArray[np.float32]
    fps: NDArray[np.float32]  # (samples,)
    steps: int
    guidance: float
    updates: Sequence[Update]
    masking: Masking | None
    sizes: Mapping[str, int]  # of the dynamic axes, text excepted
    granularity: Granularity
    measures: tuple[Measure, ...]
    run: Run


def settle(bundle: Bundle, request: Request) -> Settled:
    """Checks a request before anything is allocated.

    Raises:
        OutOfRangeError: a number or size is outside what the model or the bundle's profiles allow.
        InputError: prompts, captions and latents do not belong together, or the policy measures what the bundle has no
            probe for.
        PolicyError: the policy cannot decide at this granularity.
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
    needs = request.policy.needs
    granularity = request.granularity or needs.granularity
    for value, known in ((granularity, GRANULARITIES), (request.scope, SCOPES)):
        if value not in known:
            raise InputError(f"{value!r} is unknown; choose one of {', '.join(known)}")
    if granularity not in granularities(manifest):
        raise InputError(
            "this bundle has one stage for each block; to cache single modules, export the checkpoint with "
            "--granularity module"
        )
    if not 0 <= request.seed <= MAX_SEED:
        raise OutOfRangeError(f"seed {request.seed} is not possible; choose 0 to {MAX_SEED}")
    check_tile(manifest.latent, request.tile)
    shape = _latent_shape(manifest, request, samples, **video)
    axes = dict(zip(("frames", "height", "width"), shape[2:], strict=True))
    check_profiles(manifest, {"samples": samples, **axes})
    calls = updates(manifest, steps, samples, **video, idle_call=request.idle_call)
    if request.mask is not None:
        check_mask(manifest, request.mask, request.noise, request.latents, len(calls))
    elif request.noise is not None:
        raise InputError("the noise of each step is for a generation with a mask: give that, too, or leave it out")
    units = samples if request.scope == "prompt" else 1
    run = run_of(group_stages(manifest, granularity), calls, units, manifest.guidance.order)
    request.policy.start(run)  # refuses if it must
    batch = {"samples": samples, "batch": samples * len(manifest.guidance.order)}
    return Settled(
        samples=samples,
        **video,
        latents=_noise(request, shape),
        fps=_fps(manifest.video, request, video["frames"], samples),
        steps=steps,
        guidance=guidance,
        updates=calls,
        masking=None if request.mask is None else masking(request.mask, calls, request.noise, request.seed),
        sizes={**axes, **manifest.latent.token_axes(**axes), **batch},
        granularity=granularity,
        measures=resolve(manifest, needs, granularity),
        run=run,
    )


def _samples(manifest: Manifest, request: Request) -> int:
    if (request.captions is None) == (not request.prompts):
        raise InputError("give either prompts or the embeddings of an encoder of your own, and not both")
    samples = len(request.prompts) if request.captions is None else _check_captions(manifest.text, request.captions)
    _check_negative(manifest, request, samples)
    return samples


def _check_captions(rule: TextRule, captions: Captions) -> int:
    """The number of prompts."""
    embeddings, mask = captions.embeddings, captions.mask
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


def _check_negative(manifest: Manifest, request: Request, samples: int) -> None:
    negative = None if request.captions is None else request.captions.negative
    if manifest.guidance.null_captions is not None and (request.negative_prompts or negative is not None):
        raise InputError(
            f"{manifest.family} takes no negative prompt: its guidance is away from a caption that it has learned; "
            "leave it out"
        )
    if request.negative_prompts and negative is not None:
        raise InputError("give either negative prompts or their embeddings, and not both")
    if len(request.negative_prompts) not in (0, 1, samples):
        raise InputError(
            f"{len(request.negative_prompts)} negative prompts for {samples} prompts; give one, or one each"
        )
    if negative is None:
        return
    width = manifest.text.width
    if negative.ndim != 3 or negative.shape[0] != samples or negative.shape[2] != width:
        raise InputError(f"negative embeddings have shape {negative.shape}; expected ({samples}, length, {width})")
    if not _fits_float32(negative):
        raise InputError("the negative embeddings contain NaN, infinity or numbers beyond float32; check the encoder")


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
        if latent.whole_patches and any(side % patch for side, patch in zip(given[2:], latent.patch, strict=True)):
            raise OutOfRangeError(
                f"latents have shape {given}; this model takes (frames, height, width) in multiples of {latent.patch}"
            )
        return given
    unit = latent.spatial_factor * latent.patch[1]
    if latent.whole_patches and (height % unit or width % unit):
        raise OutOfRangeError(f"{height}x{width} pixels are not possible with this model; choose multiples of {unit}")
    size = (height // latent.spatial_factor, width // latent.spatial_factor)
    if min(size) < 1:
        raise OutOfRangeError(f"{height}x{width} pixels are too few; choose at least {latent.spatial_factor} each way")
    return (samples, latent.channels, latent.latent_frames(frames), *size)


def _noise(request: Request, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The given latents, or the seed's."""
    if request.latents is None:
        return initial_noise(request.seed, shape)
    if not _fits_float32(request.latents):
        raise InputError("the initial latents contain NaN, infinity or numbers beyond float32")
    return np.ascontiguousarray(request.latents, np.float32)


def initial_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Latents of a shape that a generation with this seed begins with."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _fits_float32(values: NDArray[Any]) -> bool:
    return bool((np.abs(values) <= np.finfo(np.float32).max).all())  # False for NaN


def _fps(usual: VideoDefaults, request: Request, frames: int, samples: int) -> NDArray[np.float32]:
    fps: Sequence[float] = request.fps or (usual.image_fps if frames == 1 else usual.fps,)
    if len(fps) not in (1, samples):
        raise InputError(f"{len(fps)} values of fps for {samples} prompts; give one, or one each")
    if not all(0 < value <= 1000 for value in fps):
        raise OutOfRangeError(f"fps {', '.join(map(str, fps))} is not possible; choose more than 0, at most 1000")
    return np.broadcast_to(np.array(fps, np.float32), (samples,)).copy()
