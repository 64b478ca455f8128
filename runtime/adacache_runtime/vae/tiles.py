"""Frames coded by overlapping tiles, whose overlaps are blended: memory for one tile instead of a whole frame.

The layout and the linear blending are those of diffusers' ``AutoencoderKL.tiled_decode`` and ``tiled_encode``: tiles
overlap by a quarter of their side, and each fades in over the one above it, then over the one to the left.
"""

from collections.abc import Callable, Sequence

import numpy as np

from adacache_engines.bundle.latent_space import LatentSpace
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_runtime.samplers.update import Floats

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


def tile_side(space: LatentSpace, tile: int | None, size: Sequence[int], chunks: int) -> int | None:
    """Of a tile in latent rows and columns; None where frames are not cut.

    Args:
        space: of the bundle.
        tile: its side in pixels; None = what the bundle says.
        size: of the frames, in latent rows and columns.
        chunks: of the video.

    Raises:
        InputError, OutOfRangeError: there are no such tiles.
    """
    check_tile(space, tile)
    side = (tile or space.tile or 0) // space.spatial_factor
    cut = max(size) > side or (space.tiles_chunks and tile is None and chunks > 1)
    return side if side and cut else None


def spans(length: int, side: int | None, unit: int = 1) -> list[tuple[int, int]]:
    """Where tiles begin and end along an axis, one wherever a step leads to, even where the one before reaches the
    edge; one for all of the axis without a side.

    Args:
        length: of the axis.
        side: of a tile in units; None = all of the axis.
        unit: of the axis, such as the pixels of a latent row. A part of one at the end makes no tile of its own.
    """
    if side is None:
        return [(0, length)]
    starts = range(0, length // unit * unit, unit * (side - side // QUARTER))
    return [(start, min(start + unit * side, length)) for start in starts]


def by_tiles(
    code: Callable[[Floats], Floats], values: Floats, side: int | None, taken: int = 1, given: int = 1
) -> Floats:
    """
    Args:
        code: (..., height, width) of a tile to what becomes of it, its last two axes rows and columns, too.
        values: of whole frames.
        side: of a tile in latent rows and columns, a multiple of 4; None = the frames are one tile.
        taken, given: rows of ``values``, and of what becomes of them, that a latent row stands for.
    """
    if side is None:
        return code(values)
    rows, columns = (spans(length, side, taken) for length in values.shape[-2:])
    overlap, kept = given * side // QUARTER, given * (side - side // QUARTER)
    strips: list[Floats] = []
    above: list[Floats] = []
    for top, bottom in rows:
        row: list[Floats] = []
        for column, (left, right) in enumerate(columns):
            tile = code(values[..., top:bottom, left:right])
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
