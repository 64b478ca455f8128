"""Where frames that are given go, as Open-Sora's mask strategies say it.

Latents come as its VAE makes them, 5 of each 17 frames. Such a group decodes by itself, so references begin where one
does.

Source: hpcaitech/Open-Sora v1.2, ``opensora/utils/inference_utils.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import LatentSpace
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_runtime.request import Request

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Placement:
    """Latent frames of a reference that take the place of noise.

    Attributes:
        reference: number of the reference, from 0.
        reference_start, start: first latent frame in the reference and in the clip; negative = from the end.
        length: in latent frames, less where the reference or the clip ends.
        edit_ratio: 0 = keep them; else as of :mod:`adacache_runtime.conditioning.masks`, where 1 takes them for
            the noise itself.
    """

    reference: int = 0
    reference_start: int = 0
    start: int = 0
    length: int = 1
    edit_ratio: float = 0.0


def alignment(space: LatentSpace) -> int:
    """Latent frames of a group, where references may begin."""
    return space.frames.chunk_latents


def snapped(index: int, frames: int, align: int) -> int:
    """The beginning of a group of ``align`` that is nearest to ``index`` of ``frames``: half a group or less goes down,
    and none goes beyond the last whole one.
    """
    group, rest = divmod(index, align)
    if 2 * rest > align and group < frames // align - 1:
        group += 1
    return group * align


def place(
    latents: Floats, references: Sequence[Floats], placements: Sequence[Placement], align: int = 1
) -> tuple[Floats, Floats]:
    """
    Args:
        latents: noise of one prompt (channels, frames, height, width).
        references: each (channels, frames, height, width).
        placements: where they go; later ones come on top.
        align: see :func:`alignment`.

    Returns:
        Latents of that shape, and their mask (frames,).

    Raises:
        InputError: there is no such reference, or it has not the latents' size.
        OutOfRangeError: a start is beyond the frames that there are.
    """
    out, mask = latents.copy(), np.ones(latents.shape[1], np.float32)
    for placement in placements:
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
    return beginning(request, [place(sample, references, placements, align=align) for sample in noise])


def beginning(request: Request, placed: Sequence[tuple[Floats, Floats]]) -> Request:
    """A request with latents (channels, frames, height, width) and mask (frames,) of each prompt."""
    latents, mask = (np.stack(arrays) for arrays in zip(*placed, strict=True))
    return replace(request, latents=latents, mask=mask)


def latent_index(space: LatentSpace, frame: int, frames: int) -> int:
    """The latent frame that holds a frame of a video of ``frames``; negative = from the end.

    Raises:
        OutOfRangeError: the video has no such frame.
    """
    from_start = frame + frames if frame < 0 else frame
    if not 0 <= from_start < frames:
        raise OutOfRangeError(f"the video has no frame {frame}; it has {frames}, from 0, or from -1 at its end")
    return space.frames.latent_frame_of(from_start)
