"""Frames decoded by overlapping tiles, whose overlaps are blended: memory for one tile instead of a whole frame.

The layout and the linear blending are those of diffusers' ``AutoencoderKL.tiled_decode``: tiles overlap by a quarter of
their side, and each fades in over the one above it, then over the one to the left.
"""

from collections.abc import Callable

import numpy as np

from adacache_engines.errors import InputError, OutOfRangeError
from adacache_engines.latent_space import LatentSpace
from adacache_runtime.samplers import Floats

QUARTER = 4  # of a tile's side are overlap


def check_tile(space: LatentSpace, tile: int | None) -> None:
    """
    Raises:
        InputError: the bundle has no decoder.
        OutOfRangeError: tiles of so many pixels cannot be cut at whole latent columns.
    """
    if tile is not None and not space.decoding:
        raise InputError("this bundle has no decoder that could work by tiles; leave them out")
    unit = QUARTER * space.spatial_factor
    if tile is not None and (tile < unit or tile % unit):
        raise OutOfRangeError(f"tiles of {tile} pixels are not possible with this model; choose a multiple of {unit}")


def spans(length: int, side: int | None) -> list[tuple[int, int]]:
    """Where tiles of ``side`` begin and end along an axis, one wherever a step leads to, even where the one before
    reaches the edge; one for all of the axis without a side.
    """
    if side is None:
        return [(0, length)]
    return [(start, min(start + side, length)) for start in range(0, length, side - side // QUARTER)]


def by_tiles(decode: Callable[[Floats], Floats], latents: Floats, side: int | None, factor: int) -> Floats:
    """
    Args:
        decode: (..., height, width) latents to (..., factor * height, factor * width) pixels.
        latents: of whole frames.
        side: of a tile in latent rows and columns, a multiple of 4; None = the frames are one tile.
        factor: pixels of a latent row or column.
    """
    if side is None:
        return decode(latents)
    rows, columns = (spans(length, side) for length in latents.shape[-2:])
    overlap, kept = factor * side // QUARTER, factor * (side - side // QUARTER)
    strips: list[Floats] = []
    above: list[Floats] = []
    for top, bottom in rows:
        row: list[Floats] = []
        for column, (left, right) in enumerate(columns):
            tile = decode(latents[..., top:bottom, left:right])
            if above:
                _fade_in(above[column].swapaxes(-1, -2), tile.swapaxes(-1, -2), overlap)
            if row:
                _fade_in(row[-1], tile, overlap)
            row.append(tile)
        strips.append(np.concatenate([tile[..., :kept, :kept] for tile in row], -1))
        above = row
    return np.concatenate(strips, -2)


def _fade_in(before: Floats, after: Floats, overlap: int) -> None:
    """Goes over from the last columns of a tile to the first of the next, in place."""
    length = min(overlap, before.shape[-1], after.shape[-1])
    share = np.arange(length, dtype=np.float32) / np.float32(length)
    after[..., :length] = before[..., -length:] * (1 - share) + after[..., :length] * share
