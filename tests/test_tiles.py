"""Tiles: diffusers' layout and blending, no seam, and nothing changed where one tile is enough."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from adacache_engines.errors import OutOfRangeError
from adacache_engines.latent_space import LatentSpace
from adacache_runtime.samplers import Floats
from adacache_runtime.tiles import by_tiles, check_tile, spans

FACTOR = 8


def noise(*shape: int) -> Floats:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def enlarged(latents: Floats) -> Floats:
    """A decoder that looks at nothing but the pixel itself."""
    return latents.repeat(FACTOR, -1).repeat(FACTOR, -2)


# rows and columns of which diffusers has no tile that begins in the last one's overlap
@pytest.mark.parametrize("size", [(5, 15), (12, 6), (21, 3), (3, 5), (9, 15)])
def test_as_diffusers_does_it(size: tuple[int, int], vae_folder: Path) -> None:
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 8 * FACTOR, 8

    def decode(latents: Floats) -> Floats:
        with torch.no_grad():
            return vae.decode(torch.from_numpy(latents)).sample.numpy()

    latents = noise(2, 4, *size)
    with torch.no_grad():
        tiled = vae.tiled_decode(torch.from_numpy(latents)).sample.numpy()
    given = by_tiles(decode, latents, 8, FACTOR)
    assert given.shape == tiled.shape
    off = np.abs(given - tiled).max((0, 1)) > 1e-5
    for row, column in itertools.product(range(6, size[0], 6), range(6, size[1], 6)):  # corners of four tiles
        off[FACTOR * row :, FACTOR * column :][: 2 * FACTOR, : 2 * FACTOR] = False
    assert not off.any()
    assert np.abs(given - decode(latents)).max() > 1e-3 or max(size) <= 8  # the statistics of a tile are its own


@pytest.mark.parametrize("size", [(8, 8), (1, 5), (8, 3)])
def test_one_tile_is_the_frame(size: tuple[int, int]) -> None:
    calls = []

    def decode(latents: Floats) -> Floats:
        calls.append(latents.shape)
        return enlarged(latents)

    latents = noise(2, 4, *size)
    np.testing.assert_array_equal(by_tiles(decode, latents, 8, FACTOR), enlarged(latents))
    np.testing.assert_array_equal(by_tiles(decode, latents, None, FACTOR), enlarged(latents))
    assert calls == [(2, 4, *size)] * 2


@pytest.mark.parametrize("size", [(9, 9), (30, 17), (8, 40), (53, 30)])
def test_blending_changes_nothing_where_tiles_agree(size: tuple[int, int]) -> None:
    latents = noise(1, 3, 2, *size)
    np.testing.assert_allclose(by_tiles(enlarged, latents, 8, FACTOR), enlarged(latents), rtol=0, atol=1e-6)


def test_seams_are_small() -> None:
    """Tiles that are each off by a constant of their own: the step between two is spread over the overlap."""
    offsets = itertools.cycle([0.0, 1.0, -1.0])

    def decode(latents: Floats) -> Floats:
        return enlarged(latents) + np.float32(next(offsets))

    flat = by_tiles(decode, np.zeros((1, 3, 1, 40, 40), np.float32), 16, FACTOR)
    overlap = 4 * FACTOR
    for axis in (-1, -2):
        assert np.abs(np.diff(flat, axis=axis)).max() <= 2 / overlap + 1e-6
    assert np.abs(flat).max() <= 1


@pytest.mark.parametrize("side", [4, 8, 20])
def test_spans(side: int) -> None:
    for length in range(1, 120):
        cut = spans(length, side)
        assert cut[0][0] == 0
        assert cut[-1][1] == length
        for (start, stop), (following, end) in itertools.pairwise(cut):
            assert stop - start == side
            assert stop - following == side // 4  # overlap
            assert end > stop  # holds something new
    assert spans(7, None) == [(0, 7)]


def test_possible_tiles() -> None:
    space = LatentSpace(channels=4, patch=(1, 2, 2), spatial_factor=8, frames="identity", decoder="some")
    for tile in (None, 32, 256, 4096):
        check_tile(space, tile)
    for tile in (0, -32, 8, 100):
        with pytest.raises(OutOfRangeError, match=rf"tiles of {tile} pixels .* a multiple of 32"):
            check_tile(space, tile)
