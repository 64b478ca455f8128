"""Videos of several clips, each of which begins with the end of the one before.

Source: hpcaitech/Open-Sora v1.2, ``scripts/inference.py``: 5 latent frames of condition, which are 17 of the video.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from adacache_engines.bundle.manifest import LatentSpace
from adacache_engines.errors import InputError
from adacache_runtime.conditioning.references import Floats, Placement, alignment, beginning, place
from adacache_runtime.pipeline import Pipeline, Result
from adacache_runtime.request import Request, initial_noise
from adacache_runtime.trace import CallRecord, Trace


def generate_clips(
    pipeline: Pipeline, requests: Sequence[Request], on_call: Callable[[CallRecord], None] = lambda _: None
) -> Result:
    """A generation for each request, every one but the first continuing the one before, as one video.

    Raises:
        InputError: see :func:`check_continues`; or as :meth:`Pipeline.generate`, as are its other errors.
    """
    clips: list[Result] = []
    for request in requests:
        asked = continuing(request, pipeline.bundle.manifest.latent, clips[-1].latents) if clips else request
        clips.append(pipeline.generate(asked, on_call))
    return joined(clips, pipeline.bundle.manifest.latent.continued) if len(clips) > 1 else clips[0]


def continuing(request: Request, space: LatentSpace, before: Floats) -> Request:
    """A request for the clip that follows on one with latents ``before`` (prompts, channels, frames, height, width): it
    begins with that one's last ``space.continued`` latent frames, and keeps them.

    They are taken as they are. The original takes them through pixels, which are encoded again.

    Raises:
        InputError: see :func:`check_continues`.
    """
    check_continues(space, before.shape[2])
    begin = [Placement(reference_start=-space.continued, length=space.continued)]
    noise = initial_noise(request.seed, before.shape)
    return beginning(
        replace(request, noise=None),
        [place(sample, [last], begin) for sample, last in zip(noise, before, strict=True)],
    )


def check_continues(space: LatentSpace, frames: int) -> None:
    """
    Raises:
        InputError: clips of so many latent frames are too short to continue one another, or do not end with a whole
            group.
    """
    rule, continued = space.frames, space.continued
    if frames <= continued or frames % alignment(space):
        chunk, what = rule.chunk_frames, "more of them"
        if alignment(space) > 1 and chunk is not None:
            what = f"a multiple of {chunk} frames, {rule.frames_of(continued) + chunk} or more"
        raise InputError(
            f"clips of {frames} latent frames cannot continue one another, each beginning with {continued} of the one "
            f"before; choose {what}"
        )


def joined_frames(space: LatentSpace, latent_frames: int, frames: int, clips: int) -> tuple[int, int]:
    """Latent frames and frames of a video of so many clips, each of ``latent_frames`` and ``frames``."""
    latents_again, frames_again = space.continued, space.frames.frames_of(space.continued)
    more = clips - 1
    return latent_frames + more * (latent_frames - latents_again), frames + more * (frames - frames_again)


def joined(clips: Sequence[Result], continued: int) -> Result:
    """Join clips that continue one another to one generation: each but the first without the ``continued`` latent
    frames that it began with.
    """
    first, *others = clips
    latents = np.concatenate([first.latents, *(clip.latents[:, :, continued:] for clip in others)], axis=2)
    records = [record for clip in clips for record in clip.trace.calls]
    trace = Trace(
        tuple(replace(record, call=call) for call, record in enumerate(records, 1)),
        first.trace.sizes,
        first.trace.granularity,
    )
    calls = [clip.calls for clip in clips if clip.calls is not None]
    return Result(latents, trace, np.concatenate(calls) if calls else None)
