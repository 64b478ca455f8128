"""Where frames that are given go: Open-Sora's mask strategies, and clips that continue one another.

Latents come as its VAE makes them, 5 of each 17 frames. Such a group decodes by itself, so references begin where one
does.

Source: hpcaitech/Open-Sora v1.2, ``opensora/utils/inference_utils.py`` and ``scripts/inference.py``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import InputError, OutOfRangeError
from adacache_engines.manifest import LatentSpace
from adacache_runtime.pipeline import Pipeline, Result
from adacache_runtime.request import Request, initial_noise
from adacache_runtime.samplers import CHUNK_FRAMES, CHUNK_LATENTS
from adacache_runtime.trace import CallRecord, Trace

Floats = NDArray[np.float32]

CONTINUED = CHUNK_LATENTS  # latent frames of a clip that the next one begins with


@dataclass(frozen=True)
class Placement:
    """Latent frames of a reference that take the place of noise.

    Attributes:
        loop: number of the clip, from 0, in a video of several.
        reference: number of the reference, from 0.
        reference_start, start: first latent frame in the reference and in the clip; negative = from the end.
        length: in latent frames, less where the reference or the clip ends.
        edit_ratio: 0 = keep them; else as of :mod:`adacache_runtime.masking`.
    """

    loop: int = 0
    reference: int = 0
    reference_start: int = 0
    start: int = 0
    length: int = 1
    edit_ratio: float = 0.0


def parse_strategy(text: str) -> tuple[Placement, ...]:
    """A mask strategy: ``loop,reference,reference_start,start,length,edit_ratio;...``, what is missing at the end of a
    group as :class:`Placement` has it.

    Raises:
        InputError: it is not of that form, or an edit ratio is not 0 to 1.
    """
    return tuple(_placement(group) for group in text.split(";")) if text.strip() else ()


def _placement(group: str) -> Placement:
    words = group.split(",")
    try:
        placement = Placement(*map(int, words[:5]), *map(float, words[5:]))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"mask strategy {group!r} is not loop,reference,reference_start,start,length,edit_ratio: five whole "
            "numbers and a ratio, fewer where the rest is 0,0,0,0,1,0"
        ) from error
    if not 0 <= placement.edit_ratio <= 1:
        raise InputError(f"mask strategy {group!r}: edit ratio {placement.edit_ratio} is not 0 to 1")
    return placement


def alignment(space: LatentSpace) -> int:
    """Latent frames of a group, where references may begin."""
    return CHUNK_LATENTS if space.frames == "open-sora-vae" else 1


def snapped(index: int, frames: int, align: int) -> int:
    """The beginning of a group of ``align`` that is nearest to ``index`` of ``frames``: half a group or less goes down,
    and none goes beyond the last whole one.
    """
    group, rest = divmod(index, align)
    if 2 * rest > align and group < frames // align - 1:
        group += 1
    return group * align


def place(
    latents: Floats, references: Sequence[Floats], placements: Sequence[Placement], loop: int = 0, align: int = 1
) -> tuple[Floats, Floats]:
    """
    Args:
        latents: noise of one prompt (channels, frames, height, width).
        references: each (channels, frames, height, width).
        placements: where they go; those of other loops do not count, and later ones come on top.
        loop: number of the clip.
        align: see :func:`alignment`.

    Returns:
        Latents of that shape, and their mask (frames,).

    Raises:
        InputError: there is no such reference, or it has not the latents' size.
        OutOfRangeError: a start is beyond the frames that there are.
    """
    out, mask = latents.copy(), np.ones(latents.shape[1], np.float32)
    for placement in placements:
        if placement.loop != loop:
            continue
        if not 0 <= placement.reference < len(references):
            raise InputError(f"there is no reference {placement.reference}, of {len(references)} counted from 0")
        given = references[placement.reference]
        if (given.shape[0], *given.shape[2:]) != (out.shape[0], *out.shape[2:]):
            raise InputError(
                f"reference {placement.reference} has latents {given.shape}, the video {out.shape}; they may differ in "
                "frames only: encode it at the video's size"
            )
        first = _start(placement.reference_start, given.shape[1], align, f"of reference {placement.reference}")
        start = _start(placement.start, out.shape[1], align, "of the video")
        length = min(placement.length, out.shape[1] - start, given.shape[1] - first)
        out[:, start : start + length] = given[:, first : first + length]
        mask[start : start + length] = placement.edit_ratio
    return out, mask


def _start(index: int, frames: int, align: int, of: str) -> int:
    from_start = index + frames if index < 0 else index
    if not 0 <= from_start < frames:
        raise OutOfRangeError(f"latent frame {index} is none {of}, which has {frames}")
    return snapped(from_start, frames, align)


def placed(
    request: Request, noise: Floats, references: Sequence[Floats], placements: Sequence[Placement], align: int = 1
) -> Request:
    """A request that begins with references, the same ones for each prompt of ``noise`` (prompts, channels, frames,
    height, width). Raises what :func:`place` raises.
    """
    return _beginning(request, [place(sample, references, placements, align=align) for sample in noise])


def continued(request: Request, space: LatentSpace, before: Floats) -> Request:
    """A request for the clip that follows on one with latents ``before`` (prompts, channels, frames, height, width): it
    begins with that one's last :data:`CONTINUED` latent frames, and keeps them.

    They are taken as they are. The original takes them through pixels, which are encoded again.

    Raises:
        InputError: see :func:`check_continues`.
    """
    check_continues(space, before.shape[2])
    begin = [Placement(reference_start=-CONTINUED, length=CONTINUED)]
    noise = initial_noise(request.seed, before.shape)
    return _beginning(
        replace(request, noise=None),
        [place(sample, [last], begin) for sample, last in zip(noise, before, strict=True)],
    )


def check_continues(space: LatentSpace, frames: int) -> None:
    """
    Raises:
        InputError: clips of so many latent frames are too short to continue one another, or do not end with a whole
            group.
    """
    align = alignment(space)
    if frames <= CONTINUED or frames % align:
        what = f"a multiple of {CHUNK_FRAMES} frames, {2 * CHUNK_FRAMES} or more" if align > 1 else "more of them"
        raise InputError(
            f"clips of {frames} latent frames cannot continue one another, each beginning with {CONTINUED} of the one "
            f"before; choose {what}"
        )


def _beginning(request: Request, placed: Sequence[tuple[Floats, Floats]]) -> Request:
    latents, mask = (np.stack(arrays) for arrays in zip(*placed, strict=True))
    return replace(request, latents=latents, mask=mask)


def generate_clips(
    pipeline: Pipeline, requests: Sequence[Request], on_call: Callable[[CallRecord], None] = lambda _: None
) -> Result:
    """A generation for each request, every one but the first continuing the one before, as one video.

    Raises:
        InputError: see :func:`check_continues`; or as :meth:`Pipeline.generate`, as are its other errors.
    """
    clips: list[Result] = []
    for request in requests:
        asked = continued(request, pipeline.bundle.manifest.latent, clips[-1].latents) if clips else request
        clips.append(pipeline.generate(asked, on_call))
    return joined(clips) if len(clips) > 1 else clips[0]


def joined(clips: Sequence[Result]) -> Result:
    """Clips that continue one another as one generation: of each after the first without the frames it began with."""
    first, *others = clips
    latents = np.concatenate([first.latents, *(clip.latents[:, :, CONTINUED:] for clip in others)], axis=2)
    records = [record for clip in clips for record in clip.trace.calls]
    trace = Trace(
        tuple(replace(record, call=call) for call, record in enumerate(records, 1)),
        first.trace.sizes,
        first.trace.granularity,
    )
    calls = [clip.calls for clip in clips if clip.calls is not None]
    return Result(latents, trace, np.concatenate(calls) if calls else None)


def latent_index(space: LatentSpace, frame: int, frames: int) -> int:
    """The latent frame that holds a frame of a video of ``frames``; negative = from the end.

    Raises:
        OutOfRangeError: the video has no such frame.
    """
    from_start = frame + frames if frame < 0 else frame
    if not 0 <= from_start < frames:
        raise OutOfRangeError(f"the video has no frame {frame}; it has {frames}, from 0, or from -1 at its end")
    if space.frames != "open-sora-vae":
        return from_start
    group, rest = divmod(from_start, CHUNK_FRAMES)
    return CHUNK_LATENTS * group + math.ceil(rest / 4)
