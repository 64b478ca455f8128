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
    """Check the side of tiles that is asked for.

    Raises:
        InputError: the bundle has no decoder.
        OutOfRangeError: tiles of this side cannot be cut at whole latent columns.
    """
    if tile is not None and not space.decoding:
        raise InputError("this bundle has no decoder that could work by tiles; leave them out")
    unit = QUARTER * space.spatial_factor
    if tile is not None and (tile < unit or tile % unit):
        raise OutOfRangeError(f"tiles of {tile} pixels are not possible with this model; choose a multiple of {unit}")


def tile_side(space: LatentSpace, tile: int | None, size: Sequence[int], chunks: int) -> int | None:
    """Return the side of a tile in latent rows and columns; None where frames are not cut.

    Args:
        space: latent space of the bundle.
        tile: side of a tile in pixels; None = the bundle's.
        size: latent rows and columns of the frames.
        chunks: number of chunks of the video.

    Raises:
        InputError, OutOfRangeError: tiles of this side cannot be cut.
    """
    check_tile(space, tile)
    side = (tile or space.tile or 0) // space.spatial_factor
    cut = max(size) > side or (space.tiles_chunks and tile is None and chunks > 1)
    return side if side and cut else None


def spans(length: int, side: int | None, unit: int = 1) -> list[tuple[int, int]]:
    """Return where tiles begin and end along an axis.

    A tile begins wherever a step leads to, even where the one before it reaches the edge already.

    Args:
        length: length of the axis.
        side: side of a tile in units; None = one tile for the whole axis.
        unit: length of a unit, such as the pixels of a latent row. A part of one at the end makes no tile of its own.
    """
    if side is None:
        return [(0, length)]
    starts = range(0, length // unit * unit, unit * (side - side // QUARTER))
    return [(start, min(start + unit * side, length)) for start in starts]


def by_tiles(
    code: Callable[[Floats], Floats], values: Floats, side: int | None, taken: int = 1, given: int = 1
) -> Floats:
    """Code frames tile by tile, and blend the tiles where they overlap.

    Args:
        code: codes the values (..., height, width) of a tile; the last two axes of the result are rows and columns,
            too.
        values: values of whole frames.
        side: side of a tile in latent rows and columns, a multiple of 4; None = the frames are one tile.
        taken, given: number of rows of ``values``, and of the result, for each latent row.
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
    """Blend the last columns of a tile into the first ones of the next, in place."""
    length = min(overlap, before.shape[-1], after.shape[-1])
    share = np.arange(length, dtype=np.float32) / np.float32(length)
    after[..., :length] = before[..., -length:] * (1 - share) + after[..., :length] * share
