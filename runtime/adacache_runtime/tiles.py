"""Frames decoded by overlapping tiles, whose overlaps are blended: memory for one tile instead of a whole frame.

The layout and the linear blending are those of diffusers' ``AutoencoderKL.tiled_decode``: tiles overlap by a quarter of
their side. But no tile begins in the last one's overlap, where diffusers adds one that holds nothing new; and rows of
tiles are blended when they are whole, so that no corner is blended twice along a row.
"""

from collections.abc import Callable, Sequence

import numpy as np

from adacache_engines.errors import OutOfRangeError
from adacache_engines.latent_space import LatentSpace
from adacache_runtime.samplers import Floats

QUARTER = 4  # of a tile's side are overlap


def check_tile(space: LatentSpace, tile: int | None) -> None:
    """
    Raises:
        OutOfRangeError: tiles of so many pixels cannot be cut at whole latent columns.
    """
    unit = QUARTER * space.spatial_factor
    if tile is not None and (tile < unit or tile % unit):
        raise OutOfRangeError(f"tiles of {tile} pixels are not possible with this model; choose a multiple of {unit}")


def spans(length: int, side: int | None) -> list[tuple[int, int]]:
    """Where tiles of ``side`` begin and end along an axis; one for all of it without a side."""
    if side is None or length <= side:
        return [(0, length)]
    overlap = side // QUARTER
    return [(start, min(start + side, length)) for start in range(0, length - overlap, side - overlap)]


def by_tiles(decode: Callable[[Floats], Floats], latents: Floats, side: int | None, factor: int) -> Floats:
    """
    Args:
        decode: (..., height, width) latents to (..., factor * height, factor * width) pixels.
        latents: of whole frames.
        side: of a tile in latent rows and columns, a multiple of 4; None = the frames are one tile.
        factor: pixels of a latent row or column.
    """
    rows, columns = (spans(length, side) for length in latents.shape[-2:])
    if len(rows) == len(columns) == 1 or side is None:
        return decode(latents)
    overlap = factor * side // QUARTER
    strips = [
        _joined([decode(latents[..., top:bottom, left:right]) for left, right in columns], overlap)
        for top, bottom in rows
    ]
    return _joined([strip.swapaxes(-1, -2) for strip in strips], overlap).swapaxes(-1, -2)


def _joined(tiles: Sequence[Floats], overlap: int) -> Floats:
    """Tiles side by side, going over from one to the next along their overlap."""
    share = np.arange(overlap, dtype=np.float32) / np.float32(overlap)
    parts = []
    for index, tile in enumerate(tiles):
        if index:
            parts.append(tiles[index - 1][..., -overlap:] * (1 - share) + tile[..., :overlap] * share)
        parts.append(tile[..., overlap if index else 0 : None if tile is tiles[-1] else -overlap])
    return np.concatenate(parts, -1)
