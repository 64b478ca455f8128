"""How Open-Sora-Plan v1.1.0 cuts up a clip for its CausalVAE (``tiled_decode``, ``tiled_decode2d``), written down
once more, pixel by pixel.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]


def in_pieces(latents: Values, decode: Callable[[Values], Values], chunk: int, tile: int, factor: int) -> Values:
    """A clip as the original decodes it: chunks that share a latent frame, in tiles, unless all of it fits.

    Args:
        latents: (C, T, H, W).
        decode: decoder of a piece, (C, t, h, w) -> (3, 4 t - 3, factor * h, factor * w).
        chunk: latent frames of a chunk.
        tile: latent rows and columns of a tile.
        factor: pixels of a latent row or column.
    """
    frames = latents.shape[1]
    if frames <= chunk and max(latents.shape[2:]) <= tile:
        return decode(latents)
    starts = [start for start in range(0, frames, chunk - 1) if start == 0 or start + 1 < frames]
    made = [in_tiles(latents[:, start : start + chunk], decode, tile, factor) for start in starts]
    return np.concatenate([made[0], *(later[:, 1:] for later in made[1:])], 1)


def in_tiles(latents: Values, decode: Callable[[Values], Values], tile: int, factor: int) -> Values:
    """Pixel by pixel: what a tile has become at a place, which asks for what those above and to the left have."""
    height, width = latents.shape[2:]
    step, kept, blended = tile * 3 // 4, factor * tile * 3 // 4, factor * tile // 4
    tops, lefts = range(0, height, step), range(0, width, step)
    tiles = [[decode(latents[:, :, top : top + tile, left : left + tile]) for left in lefts] for top in tops]

    def become(i: int, j: int, y: int, x: int) -> Values:
        """Return what the pixel at (y, x) of tile (i, j) has become."""
        value, size = tiles[i][j][:, :, y, x], tiles[i][j].shape[2:]
        if i:
            rows = tiles[i - 1][j].shape[2]
            n = min(blended, rows, size[0])
            if y < n:
                value = become(i - 1, j, rows - n + y, x) * (1 - y / n) + value * (y / n)
        if j:
            columns = tiles[i][j - 1].shape[3]
            n = min(blended, columns, size[1])
            if x < n:
                value = become(i, j - 1, y, columns - n + x) * (1 - x / n) + value * (x / n)
        return value

    made = np.empty((*tiles[0][0].shape[:2], factor * height, factor * width), np.float32)
    for y in range(made.shape[2]):
        for x in range(made.shape[3]):
            i, j = min(y // kept, len(tops) - 1), min(x // kept, len(lefts) - 1)
            made[:, :, y, x] = become(i, j, y - kept * i, x - kept * j)
    return made
