"""How a clip is cut into windows and tiles, against the original's rules written down once more in one dimension."""

import numpy as np
import pytest

from adacache_runtime.causal_tiles import DECODING, ENCODING, Tiling, fits, in_pieces, tiles, windows

SMALL = Tiling(window=3, tile=8, step=6, kept=12, blended=4)  # results have twice the rows and columns


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def grow(piece: np.ndarray) -> np.ndarray:
    """Frames 2 T - 1, rows and columns twice; what it gives depends on the whole of the piece."""
    frames = np.repeat(piece, 2, axis=1)[:, 1:]
    return np.repeat(np.repeat(frames, 2, axis=2), 2, axis=3) + piece.mean()


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (1, [(0, 1)]),
        (17, [(0, 17)]),
        (18, [(0, 17), (16, 18)]),
        (33, [(0, 17), (16, 33)]),
        (34, [(0, 17), (16, 33), (32, 34)]),
        (56, [(0, 17), (16, 33), (32, 49), (48, 56)]),
        (129, [(16 * i, 16 * i + 17) for i in range(8)]),
    ],
)
def test_windows_of_latents(frames: int, expected: list[tuple[int, int]]) -> None:
    assert windows(frames, DECODING) == expected
    pixels = 4 * (frames - 1) + 1
    assert windows(pixels, ENCODING) == [(4 * start, 4 * (end - 1) + 1) for start, end in expected]
    decoded = [4 * (end - start - 1) + (start == 0) for start, end in expected]
    assert sum(decoded) == pixels


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (20, [(0, 20)]),
        (24, [(0, 24)]),
        (32, [(0, 32), (24, 32)]),
        (50, [(0, 32), (24, 50), (48, 50)]),
        (64, [(0, 32), (24, 56), (48, 64)]),
    ],
)
def test_tiles_of_latents(size: int, expected: list[tuple[int, int]]) -> None:
    assert tiles(size, DECODING) == expected
    assert tiles(8 * size, ENCODING) == [(8 * start, 8 * end) for start, end in expected]


def test_what_fits_is_run_at_once() -> None:
    assert fits(values(4, 17, 32, 32), DECODING)
    for shape in ((4, 18, 32, 32), (4, 17, 33, 32), (4, 17, 32, 33)):
        assert not fits(values(*shape), DECODING)
    clip = values(2, 3, 8, 7)
    (whole,) = in_pieces(clip, grow, SMALL)
    assert np.array_equal(whole, grow(clip))


def faded(pieces: list[np.ndarray], axis: int) -> np.ndarray:
    """Results along an axis, each pixel out of the two that it lies in."""
    joined: list[np.ndarray] = []
    for index, piece in enumerate(pieces):
        lines = list(np.moveaxis(piece, axis, 0))
        if index:
            before = list(np.moveaxis(pieces[index - 1], axis, 0))
            length = min(4, len(before), len(lines))
            for i in range(length):
                lines[i] = before[len(before) - length + i] * (1 - i / length) + lines[i] * (i / length)
        pieces[index] = np.moveaxis(np.stack(lines), 0, axis)
        joined += lines[:12]
    return np.moveaxis(np.stack(joined), 0, axis)


@pytest.mark.parametrize("size", [(9, 4), (4, 9), (15, 20)], ids=str)
def test_tiles_fade_into_one_another(size: tuple[int, int]) -> None:
    """One tile high or wide, where the order does not matter; then rows of such strips."""
    clip = values(2, 3, *size)
    (made,) = in_pieces(clip, grow, SMALL)
    assert made.shape == (2, 5, 2 * size[0], 2 * size[1])
    if min(size) < 6:
        axis = 2 if size[0] > size[1] else 3
        cuts = [np.take(clip, range(*ends), axis=axis) for ends in tiles(max(size), SMALL)]
        assert np.abs(made - faded([grow(cut) for cut in cuts], axis)).max() < 1e-6
    else:
        assert np.abs(made - two_dimensional(clip)).max() < 1e-6


def two_dimensional(clip: np.ndarray) -> np.ndarray:
    """Pixel by pixel: what a tile has become at a place, which asks for what those above and to the left have."""
    rows, columns = (tiles(size, SMALL) for size in clip.shape[2:])
    results = [[grow(clip[:, :, t:b, left:right]) for left, right in columns] for t, b in rows]

    def become(i: int, j: int, y: int, x: int) -> np.ndarray:
        """Of result (i, j) at (y, x) of its own."""
        value, tile = results[i][j][:, :, y, x], results[i][j]
        if i:
            above = results[i - 1][j]
            n = min(4, above.shape[2], tile.shape[2])
            if y < n:
                value = become(i - 1, j, above.shape[2] - n + y, x) * (1 - y / n) + value * (y / n)
        if j:
            left = results[i][j - 1]
            n = min(4, left.shape[3], tile.shape[3])
            if x < n:
                value = become(i, j - 1, y, left.shape[3] - n + x) * (1 - x / n) + value * (x / n)
        return value

    made = np.empty((clip.shape[0], 2 * clip.shape[1] - 1, 2 * clip.shape[2], 2 * clip.shape[3]), np.float32)
    for y in range(made.shape[2]):
        for x in range(made.shape[3]):
            i, j = min(y // 12, len(rows) - 1), min(x // 12, len(columns) - 1)
            made[:, :, y, x] = become(i, j, y - 12 * i, x - 12 * j)
    return made


@pytest.mark.parametrize("frames", [4, 5, 8])
def test_later_windows_lose_their_first_frame(frames: int) -> None:
    clip = values(1, frames, 2, 3)
    pieces = list(in_pieces(clip, grow, SMALL))
    ends = windows(frames, SMALL)
    assert [piece.shape[1] for piece in pieces] == [2 * (end - start - 1) + (start == 0) for start, end in ends]
    expected = [grow(clip[:, start:end])[:, bool(start) :] for start, end in ends]
    assert np.array_equal(np.concatenate(pieces, 1), np.concatenate(expected, 1))
    assert sum(piece.shape[1] for piece in pieces) == 2 * frames - 1


def test_results_of_a_buffer_that_is_used_again() -> None:
    buffer = np.zeros((1, 5, 16, 16), np.float32)

    def run(piece: np.ndarray) -> np.ndarray:
        result = grow(piece)
        view = buffer[:, : result.shape[1], : result.shape[2], : result.shape[3]]
        view[...] = result
        return view

    clip = values(1, 3, 14, 10)
    assert np.array_equal(next(in_pieces(clip, run, SMALL)), next(in_pieces(clip, grow, SMALL)))
