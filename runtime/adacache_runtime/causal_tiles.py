"""A clip that is too long or too large for Open-Sora-Plan's CausalVAE at once, piece by piece.

Source: PKU-YuanGroup/Open-Sora-Plan v1.1.0, ``opensora/models/ae/videobase/causal_vae/modeling_causalvae.py``
(``tiled_decode``, ``tiled_decode2d``, ``tiled_encode``, ``tiled_encode2d``), which its published sampling scripts run
(``--enable_tiling``). The pieces are part of the result: normalisation and attention see one piece at a time.

Values are (channels, frames, rows, columns) of one clip.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]
ROWS, COLUMNS = 2, 3


@dataclass(frozen=True)
class Tiling:
    """How a clip is cut up.

    Attributes:
        window: frames of a window. Each begins with the last frame of the one before it.
        tile: rows and columns of a tile.
        step: rows and columns from the beginning of a tile to that of the next.
        kept: rows and columns of a tile's result that are kept; those after them come from the tile after it.
        blended: rows and columns at the beginning of a tile's result that fade in.
    """

    window: int
    tile: int
    step: int
    kept: int
    blended: int


DECODING = Tiling(window=17, tile=32, step=24, kept=192, blended=64)  # latents to pixels
ENCODING = Tiling(window=65, tile=256, step=192, kept=24, blended=8)  # pixels to moments


def fits(values: Values, tiling: Tiling) -> bool:
    """Whether a clip is not cut up at all."""
    _, frames, rows, columns = values.shape
    return bool(frames <= tiling.window and max(rows, columns) <= tiling.tile)


def windows(frames: int, tiling: Tiling) -> list[tuple[int, int]]:
    """Beginning and end of each window: all as long as they can be, the last one what is left of it and at least two
    frames. 18 latent frames are (0, 17) and (16, 18).
    """
    starts = range(0, frames, tiling.window - 1)
    return [(start, min(start + tiling.window, frames)) for start in starts if start == 0 or start + 1 < frames]


def tiles(size: int, tiling: Tiling) -> list[tuple[int, int]]:
    """Beginning and end of each tile along one axis. One begins wherever a step leads to, even where the tile before it
    reaches the edge: 32 latent rows are (0, 32) and (24, 32).
    """
    return [(start, min(start + tiling.tile, size)) for start in range(0, size, tiling.step)]


def in_pieces(values: Values, run: Callable[[Values], Values], tiling: Tiling) -> Iterator[Values]:
    """The result of ``run`` over a clip, window by window, so that never more than one is in memory.

    A clip that :func:`fits` is run at once. Otherwise each window is cut into tiles, also where its frames would fit;
    and of all windows but the first the first resulting frame is dropped, because it is the last of those before it,
    taken for an image.

    Args:
        values: (channels, frames, rows, columns).
        run: of a piece. It decides on the resulting channels, frames, rows and columns.
        tiling: how to cut it up.

    Yields:
        (channels, frames, rows, columns) of the result; the frames of the clip are those of all of them.
    """
    if fits(values, tiling):
        yield run(values)
        return
    for start, end in windows(values.shape[1], tiling):
        frames = _in_tiles(values[:, start:end], run, tiling)
        yield frames[:, 1:] if start else frames


def _in_tiles(values: Values, run: Callable[[Values], Values], tiling: Tiling) -> Values:
    """A tile fades in over the end of the one above it, then over the end of the one to the left. What it fades in over
    has faded in itself, also where that is in its last rows or columns.
    """
    rows: list[Values] = []
    above: list[Values] = []
    for top, bottom in tiles(values.shape[ROWS], tiling):
        row: list[Values] = []
        for column, (left, right) in enumerate(tiles(values.shape[COLUMNS], tiling)):
            tile = np.array(run(np.ascontiguousarray(values[:, :, top:bottom, left:right])))
            if above:
                _fade_in(tile, above[column], tiling.blended, ROWS)
            if row:
                _fade_in(tile, row[-1], tiling.blended, COLUMNS)
            row.append(tile)
        rows.append(np.concatenate([tile[:, :, : tiling.kept, : tiling.kept] for tile in row], axis=COLUMNS))
        above = row
    return np.concatenate(rows, axis=ROWS)


def _fade_in(tile: Values, before: Values, length: int, axis: int) -> None:
    """tile[i] = (1 - i / n) before[i - n] + i / n tile[i] for i < n along an axis, n = ``length`` or, where one of them
    is smaller, its size; in place.
    """
    length = min(length, before.shape[axis], tile.shape[axis])
    share = (np.arange(length, dtype=np.float32) / length)[:, None, None, None]
    head, tail = np.moveaxis(tile, axis, 0)[:length], np.moveaxis(before, axis, 0)[-length:]
    head[...] = (1 - share) * tail + share * head
