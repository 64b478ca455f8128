"""A request checked against a bundle, with every default filled in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import IMAGE, Manifest, VideoDefaults
from adacache_engines.bundle.shape_profiles import check_profiles
from adacache_engines.errors import BundleError, InputError, OutOfRangeError
from adacache_runtime.caching import answers
from adacache_runtime.caching.groups import granularities
from adacache_runtime.caching.measures import resolve
from adacache_runtime.caching.policy import GRANULARITIES, SCOPES, Granularity, Measure
from adacache_runtime.conditioning.clips import continuation
from adacache_runtime.conditioning.encoded_video import check_video_condition
from adacache_runtime.conditioning.given_frames import GivenFrames, given_mask, place_given
from adacache_runtime.conditioning.masks import Masking, check_mask, masking
from adacache_runtime.conditioning.references import Placement, alignment, mask_of
from adacache_runtime.denoising.segments import Segment, segments
from adacache_runtime.request import MAX_SEED, Request
from adacache_runtime.samplers.registry import sampler_name, updates
from adacache_runtime.samplers.update import Update, check_guidance, check_steps
from adacache_runtime.text.captions import check_captions, fits_float32
from adacache_runtime.vae.tiles import check_tile

MIN_FPS, MAX_FPS = 0.01, 1000  # frames a second that a model is told; what a file can have is narrower


@dataclass(frozen=True)
class Settled:
    """A request with every default filled in and every number checked; it holds no array of the video's size.

    Attributes:
        samples: number of prompts.
        height, width, frames: size in pixels and number of frames of the video.
        latent_shape: (samples, channels, latent frames, latent height, latent width).
        fps: (samples,) frames per second.
        steps: sampling steps.
        updates: the sampler's update for each call.
        given: places of the images and the clip that the video contains; None = there are none.
        encoded: number of frames of each clip that is encoded before the first call.
        masking: frames that are kept, by call; None = all are generated.
        sizes: sizes of the dynamic axes, text excepted.
        granularity: groups that share a cached residual.
        measures: measures that the policy asks for, in the order of execution.
        branches: guidance branches that a call evaluates, in the order of a batch.
        segments: consecutive calls of each expert, and what the policy is told of them.
        placements: places of the frames that are given, or of the end of the clip that this one continues.
    """

    samples: int
    height: int
    width: int
    frames: int
    latent_shape: tuple[int, ...]
    fps: NDArray[np.float32]
    steps: int
    updates: Sequence[Update]
    given: GivenFrames | None
    encoded: tuple[int, ...]
    masking: Masking | None
    sizes: Mapping[str, int]
    granularity: Granularity
    measures: tuple[Measure, ...]
    branches: tuple[str, ...]
    segments: tuple[Segment, ...]
    placements: tuple[Placement, ...]

    def guidance_scales(self) -> dict[str, float]:
        """Return ``guidance``, and ``guidance_2`` where a second expert makes calls: the scales of their calls."""
        return dict(zip(("guidance", "guidance_2"), (part.guidance for part in self.segments), strict=False))


def settle(bundle: Bundle, request: Request, continues: tuple[int, ...] | None = None) -> Settled:
    """Check a request and fill in its defaults; nothing is read, drawn or allocated.

    Args:
        bundle: the opened bundle.
        request: the request, of a single loop.
        continues: shape of the latents of the clip that this one continues; None = it stands for itself.

    Raises:
        OutOfRangeError: a number or size is outside what the model or the bundle's profiles allow.
        InputError: prompts, captions, latents and images do not belong together, or the policy measures what the bundle
            has no probe for.
        PolicyError: the policy cannot decide at this granularity.
    """
    manifest = bundle.manifest
    if not manifest.stages:
        raise BundleError(f"bundle {bundle.folder} has no stages, so it makes no videos; export the checkpoint again")
    samples = _samples(manifest, request)
    steps = manifest.sampler.steps if request.steps is None else request.steps
    guidance = manifest.sampler.guidance if request.guidance is None else request.guidance
    check_steps(steps)
    check_guidance(guidance)
    if request.guidance_2 is not None:
        check_guidance(request.guidance_2)
        if len(manifest.experts) == 1:
            raise InputError("this model is one transformer and has one guidance scale; leave the second one out")
    video = {
        name: getattr(manifest.video if getattr(request, name) is None else request, name)
        for name in ("height", "width", "frames")
    }
    for name, value in video.items():
        if value < 1:
            raise OutOfRangeError(f"{name} {value} is not possible; choose at least 1")
    below, above = manifest.latent.frames.nearest(video["frames"])
    if below != above:
        raise OutOfRangeError(f"{video['frames']} frames are not possible with this model; choose {below} or {above}")
    granularity = _granularity(manifest, request)
    if not 0 <= request.seed <= MAX_SEED:
        raise OutOfRangeError(f"seed {request.seed} is not possible; choose 0 to {MAX_SEED}")
    if not 0 <= request.edit_ratio < 1:
        raise OutOfRangeError(f"edit ratio {request.edit_ratio} is not possible; choose 0 or more, below 1")
    check_tile(manifest.latent, request.tile)
    shape = continues or _latent_shape(manifest, request, samples, **video)
    axes = dict(zip(("frames", "height", "width"), shape[2:], strict=True))
    check_profiles(manifest, {"samples": samples, **axes})
    sampler = sampler_name(manifest, request.sampler)
    calls = updates(manifest, steps, samples, **video, idle_call=request.idle_call, sampler=sampler)
    given: GivenFrames | None = None
    encoded: tuple[int, ...] = ()
    if manifest.conditioning == "encoded-video":
        encoded = check_video_condition(manifest, request, shape, **video)
    elif request.video_condition is not None:
        raise InputError("this model takes no encoded video beside its latents; leave the video condition out")
    elif not continues and (given := place_given(manifest, request, video["frames"], axes["frames"])):
        encoded = given.counts
    mask = _mask(manifest, request, given, shape, bool(continues))
    if mask is not None:
        check_mask(manifest, sampler, mask, request.noise, shape, len(calls))
    elif request.noise is not None:
        raise InputError("the noise of each step is for a generation with a mask: give that, too, or leave it out")
    units = samples if request.scope == "prompt" else 1
    parts = segments(manifest, calls, granularity, units, request.guidance, request.guidance_2)
    for part in parts:
        answers.start(request.policy, part.run)  # refuses if it must
    branches = parts[0].run.branches
    batch = {"samples": samples, "batch": samples * len(branches)}
    image = {} if manifest.image is None else {IMAGE: manifest.image.tokens}
    return Settled(
        samples=samples,
        **video,
        latent_shape=shape,
        fps=_fps(manifest.video, request, video["frames"], samples),
        steps=steps,
        updates=calls,
        given=given,
        encoded=encoded,
        masking=None if mask is None else masking(mask, calls, request.noise, request.seed),
        sizes={**axes, **manifest.latent.token_axes(**axes), **image, **batch},
        granularity=granularity,
        measures=resolve(manifest, answers.needs_of(request.policy), granularity),
        branches=branches,
        segments=parts,
        placements=(continuation(manifest.latent),) if continues else given.placements if given else (),
    )


def initial_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the latents of a shape with which a generation of this seed begins."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _samples(manifest: Manifest, request: Request) -> int:
    """Check prompts, captions and negative prompts; return the number of prompts."""
    if (request.captions is None) == (not request.prompts):
        raise InputError("give either prompts or the embeddings of an encoder of your own, and not both")
    negative, samples = None, len(request.prompts)
    if request.captions is not None:
        check_captions(manifest, request.captions)
        negative, samples = request.captions.negative, len(request.captions.embeddings)
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
    return samples


def _granularity(manifest: Manifest, request: Request) -> Granularity:
    granularity = request.granularity or answers.needs_of(request.policy).granularity
    for value, known in ((granularity, GRANULARITIES), (request.scope, SCOPES)):
        if value not in known:
            raise InputError(f"{value!r} is unknown; choose one of {', '.join(known)}")
    if granularity not in granularities(manifest):
        raise InputError(
            "this bundle has one stage for each block; to cache single modules, export the checkpoint with "
            "--granularity module"
        )
    return granularity


def _latent_shape(
    manifest: Manifest, request: Request, samples: int, height: int, width: int, frames: int
) -> tuple[int, ...]:
    """Return (samples, channels, frames, height, width), the shape of the given latents if there are any."""
    latent, given = manifest.latent, None if request.latents is None else request.latents.shape
    if request.latents is not None and given is not None:
        if len(given) != 5 or given[:2] != (samples, latent.channels):
            raise InputError(
                f"latents have shape {given}; expected ({samples}, {latent.channels}, frames, height, width)"
            )
        if latent.whole_patches and any(side % patch for side, patch in zip(given[2:], latent.patch, strict=True)):
            raise OutOfRangeError(
                f"latents have shape {given}; this model takes (frames, height, width) in multiples of {latent.patch}"
            )
        if not fits_float32(request.latents):
            raise InputError("the initial latents contain NaN, infinity or numbers beyond float32")
        if _reads_size(manifest):
            return given
        height, width = (
            side * latent.spatial_factor if asked is None else asked
            for asked, side in zip((request.height, request.width), given[3:], strict=True)
        )
    rows, columns = (latent.spatial_factor * patch for patch in latent.patch[1:])
    if latent.whole_patches and (height % rows or width % columns):
        multiples = str(rows) if rows == columns else f"{columns} in width and of {rows} in height"
        raise OutOfRangeError(
            f"{width}x{height} pixels are not possible with this model; choose multiples of {multiples}"
        )
    size = (height // latent.spatial_factor, width // latent.spatial_factor)
    if min(size) < 1:
        raise OutOfRangeError(f"{width}x{height} pixels are too few; choose at least {latent.spatial_factor} each way")
    shape = (samples, latent.channels, latent.latent_frames(frames), *size)
    if given is None:
        return shape
    expected = (*shape[:2], given[2] if request.frames is None else shape[2], *shape[3:])
    if given != expected:
        raise InputError(
            f"latents have shape {given}; expected {expected}, by the size that is asked for: give such latents, or"
            " another size"
        )
    return given


def _reads_size(manifest: Manifest) -> bool:
    """Return whether the video's size in pixels is a condition of the model, which need not be that of the latents."""
    return any(spec.name in ("height", "width") for stage in manifest.stages for spec in stage.graph.inputs)


def _mask(
    manifest: Manifest, request: Request, given: GivenFrames | None, shape: tuple[int, ...], continues: bool
) -> NDArray[np.float32] | None:
    """Return the mask (samples, latent frames) of what is kept; None where nothing is."""
    space, (samples, _, frames, *_) = manifest.latent, shape
    if continues:
        return np.tile(mask_of([continuation(space)], [frames], frames, alignment(space)), (samples, 1))
    if given is not None:
        return given_mask(space, given, samples, frames)
    if request.mask is not None and request.latents is None:
        raise InputError("a mask needs latents, which hold the frames that it keeps: give them, too")
    return request.mask


def _fps(usual: VideoDefaults, request: Request, frames: int, samples: int) -> NDArray[np.float32]:
    fps: Sequence[float] = request.fps or (usual.image_fps if frames == 1 else usual.fps,)
    if len(fps) not in (1, samples):
        raise InputError(f"{len(fps)} values of fps for {samples} prompts; give one, or one each")
    if not all(MIN_FPS <= value <= MAX_FPS for value in fps):
        raise OutOfRangeError(f"fps {', '.join(map(str, fps))} is not possible; choose {MIN_FPS} to {MAX_FPS}")
    return np.broadcast_to(np.array(fps, np.float32), (samples,)).copy()
