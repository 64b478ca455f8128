"""Tiles: diffusers' layout and blending, no seam, and nothing changed where one tile is enough."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from adacache_engines.bundle.manifest import Graph, LatentSpace
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_runtime.samplers.update import Floats
from adacache_runtime.vae.tiles import by_tiles, check_tile, spans

FACTOR = 8


def noise(*shape: int) -> Floats:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def enlarged(latents: Floats) -> Floats:
    """A decoder that looks at nothing but the pixel itself."""
    return latents.repeat(FACTOR, -1).repeat(FACTOR, -2)


@pytest.mark.parametrize(
    "size", [(9, 15), *(pytest.param(size, marks=pytest.mark.slow) for size in [(12, 6), (21, 3), (8, 14), (16, 9)])]
)
def test_as_diffusers_does_it(size: tuple[int, int], vae_folder: Path) -> None:
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 8 * FACTOR, 8

    def decode(latents: Floats) -> Floats:
        with torch.no_grad():
            return vae.decode(torch.from_numpy(latents)).sample.numpy()

    latents = noise(2, 4, *size)
    with torch.no_grad():
        tiled = vae.tiled_decode(torch.from_numpy(latents)).sample.numpy()
    given = by_tiles(decode, latents, 8, given=FACTOR)
    np.testing.assert_allclose(given, tiled, rtol=0, atol=1e-5)
    assert np.abs(given - decode(latents)).max() > 1e-3  # the statistics of a tile are its own


def test_without_tiles() -> None:
    latents = noise(2, 4, 9, 11)
    np.testing.assert_array_equal(by_tiles(enlarged, latents, None, given=FACTOR), enlarged(latents))


@pytest.mark.parametrize("size", [(9, 9), (30, 17), (8, 40), (53, 30)])
def test_blending_changes_nothing_where_tiles_agree(size: tuple[int, int]) -> None:
    latents = noise(1, 3, 2, *size)
    np.testing.assert_allclose(by_tiles(enlarged, latents, 8, given=FACTOR), enlarged(latents), rtol=0, atol=1e-6)


def test_seams_are_small() -> None:
    """The decoder gives a tile the mean of what it sees, on a slope: the worst that statistics can do."""

    def decode(latents: Floats) -> Floats:
        return np.full_like(enlarged(latents), latents.mean())

    slope = np.broadcast_to(np.linspace(0, 1, 40, dtype=np.float32), (1, 3, 1, 40, 40))
    step = np.abs(np.diff([slope[..., start:stop].mean() for start, stop in spans(40, 16)])).max()
    tiled = by_tiles(decode, slope, 16, given=FACTOR)
    overlap = 4 * FACTOR
    # corners are blended twice: a parabola, and a step of a quarter at their upper edge
    assert np.abs(np.diff(tiled, axis=-1)).max() < 2 * step / overlap
    assert np.abs(np.diff(tiled, axis=-2)).max() < step / 4 + 1e-6


@pytest.mark.parametrize("side", [4, 8, 20])
def test_spans(side: int) -> None:
    for length in range(1, 120):
        cut = spans(length, side)
        assert cut[0][0] == 0
        assert cut[-1][1] == length
        for (start, stop), (following, end) in itertools.pairwise(cut):
            assert following - start == side - side // 4
            assert stop == min(start + side, length)
            assert end >= stop
    assert spans(7, None) == [(0, 7)]


def test_possible_tiles() -> None:
    nothing = LatentSpace(channels=4, patch=(1, 2, 2), spatial_factor=8, decoder="none")
    check_tile(nothing, None)
    with pytest.raises(InputError, match="no decoder that could work by tiles"):
        check_tile(nothing, 256)
    space = nothing.model_copy(
        update={"decoding": (Graph(name="decoder", path="decoder.onnx", inputs=(), outputs=()),)}
    )
    for tile in (None, 32, 256, 4096):
        check_tile(space, tile)
    for tile in (0, -32, 8, 100):
        with pytest.raises(OutOfRangeError, match=rf"tiles of {tile} pixels .* a multiple of 32"):
            check_tile(space, tile)
