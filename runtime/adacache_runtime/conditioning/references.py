"""Where frames that are given go, as Open-Sora's mask strategies say it.

Where a VAE codes a video in chunks, each chunk decodes by itself, so references begin where one does.

Source: hpcaitech/Open-Sora v1.2, ``opensora/utils/inference_utils.py``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import LatentSpace
from adacache_engines.errors import InputError, OutOfRangeError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Placement:
    """Latent frames of a reference that take the place of noise.

    Attributes:
        reference: number of the reference, from 0.
        reference_start, start: first latent frame in the reference and in the clip; negative = from the end.
        length: number of latent frames, fewer where the reference or the clip ends.
        edit_ratio: 0 = keep them; else as in :mod:`adacache_runtime.conditioning.masks`, where 1 takes them for
            the noise itself.
    """

    reference: int = 0
    reference_start: int = 0
    start: int = 0
    length: int = 1
    edit_ratio: float = 0.0


@dataclass(frozen=True)
class _Span:
    """A placement in numbers: ``length`` latent frames from ``first`` of a reference go to ``start`` of the clip."""

    reference: int
    first: int
    start: int
    length: int
    edit_ratio: float


def alignment(space: LatentSpace) -> int:
    """Return the number of latent frames of a group, where references may begin."""
    return space.frames.chunk_latents


def snapped(index: int, frames: int, align: int) -> int:
    """Return the beginning of a group of ``align`` that is nearest to ``index`` of ``frames``.

    Half a group or less goes down, and none goes beyond the last whole one.
    """
    group, rest = divmod(index, align)
    if 2 * rest > align and group < frames // align - 1:
        group += 1
    return group * align


def place(latents: Floats, references: Sequence[Floats], placements: Sequence[Placement], align: int = 1) -> Floats:
    """Return latents of one prompt with references in place of some of their frames.

    Args:
        latents: noise of one prompt (channels, frames, height, width).
        references: each (channels, frames, height, width).
        placements: where they go; later ones come on top.
        align: number of latent frames of a group, see :func:`alignment`.

    Raises:
        InputError: there is no such reference, or it has not the latents' size.
        OutOfRangeError: a start is beyond the frames that there are.
    """
    out = latents.copy()
    for span in _spans(placements, [given.shape[1] for given in references], latents.shape[1], align):
        given = references[span.reference]
        if (given.shape[0], *given.shape[2:]) != (out.shape[0], *out.shape[2:]):
            raise InputError(
                f"reference {span.reference} has latents {given.shape}, the video {out.shape}; they may differ in "
                "frames only: encode it at the video's size"
            )
        out[:, span.start : span.start + span.length] = given[:, span.first : span.first + span.length]
    return out


def mask_of(placements: Sequence[Placement], lengths: Sequence[int], frames: int, align: int = 1) -> Floats:
    """Return the mask (frames,) of references: 1 = generate, else the edit ratio of what is placed there.

    Args:
        placements: where references go; later ones come on top.
        lengths: number of latent frames of each reference.
        frames: number of latent frames of the clip.
        align: number of latent frames of a group, see :func:`alignment`.

    Raises:
        InputError: there is no such reference.
        OutOfRangeError: a start is beyond the frames that there are.
    """
    mask = np.ones(frames, np.float32)
    for span in _spans(placements, lengths, frames, align):
        mask[span.start : span.start + span.length] = span.edit_ratio
    return mask


def _spans(placements: Sequence[Placement], lengths: Sequence[int], frames: int, align: int) -> Iterator[_Span]:
    for placement in placements:
        number = placement.reference
        if not 0 <= number < len(lengths):
            raise InputError(f"there is no reference {number}, of {len(lengths)} counted from 0")
        first = _start(placement.reference_start, lengths[number], align, f"of reference {number}")
        start = _start(placement.start, frames, align, "of the video")
        length = min(placement.length, frames - start, lengths[number] - first)
        yield _Span(number, first, start, length, placement.edit_ratio)


def _start(index: int, frames: int, align: int, where: str) -> int:
    from_start = index + frames if index < 0 else index
    if not 0 <= from_start < frames:
        raise OutOfRangeError(f"latent frame {index} is none {where}, which has {frames}")
    return snapped(from_start, frames, align)


def latent_index(space: LatentSpace, frame: int, frames: int) -> int:
    """Return the latent frame that holds a frame of a video of ``frames``; negative = from the end.

    Raises:
        OutOfRangeError: the video has no such frame.
    """
    from_start = frame + frames if frame < 0 else frame
    if not 0 <= from_start < frames:
        raise OutOfRangeError(f"the video has no frame {frame}; it has {frames}, from 0, or from -1 at its end")
    return space.frames.latent_frame_of(from_start)
