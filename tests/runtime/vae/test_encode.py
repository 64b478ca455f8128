"""Pixels to latents at run time: by tiles as diffusers does it, and a part at a time in memory that is planned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from adacache_engines.bundle.files import open_bundle
from adacache_engines.bundle.latent_space import ChunkRule, LatentSpace
from adacache_engines.contract.device import HostBuffer, HostDevice
from adacache_engines.errors import OutOfRangeError
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.frame_rules import FIRST_THEN_FOURS
from adacache_runtime.memory.estimate import encoder_memory
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.vae.encode import drawn, encode, encoder_steps
from tests.helpers.model.fake_model import WIDTH, fake_pipeline, graph, spec
from tests.helpers.model.fake_vae import CHAIN, ENGINES, SPACE, noise
from tests.helpers.tiny_models.vae_bundle import alone, random_spatial_vae

FACTOR = 2
SCALE = 0.18215  # of the spatial latents
CLIPS = graph(
    "vae_encoder",
    (spec("pixels", 1, 3, "pixel_frames", "pixel_height", "pixel_width"),),
    tuple(spec(name, 1, WIDTH, "frames", "height", "width") for name in ("mean", "deviation")),
)
CAUSAL = SPACE.model_copy(
    update={
        "frames": FIRST_THEN_FOURS,
        "encoding": (CLIPS,),
        "chunks": ChunkRule(frames=9, latents=3, stretch=4, short=3, shared=1),
    }
)


def encoding(folder: Path, space: LatentSpace) -> tuple[Pipeline, list[str]]:
    return fake_pipeline(folder, ENGINES, latent=space)


@pytest.fixture(scope="module", params=["images, then chunks", "chunks"])
def fake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, list[str]]:
    return encoding(tmp_path_factory.mktemp("bundle"), CAUSAL if request.param == "chunks" else CHAIN)


@given(
    frames=some.integers(1, 20),
    height=some.integers(2, 45),
    width=some.integers(2, 45),
    tile=some.sampled_from([8, 16, 24]),
)
def test_tiles_change_nothing_where_a_vae_looks_at_single_blocks(
    frames: int, height: int, width: int, tile: int, fake: tuple[Pipeline, list[str]]
) -> None:
    """Whatever the size: overlaps agree, no row is missing, and what is beyond whole rows stays out."""
    pipeline, _ = fake
    pixels = noise(3, frames, height, width)
    whole, tiled = (encode(pipeline.bundle, pipeline.backend, pixels, drawn(3), side) for side in (None, tile))
    assert whole.shape[2:] == (height // FACTOR, width // FACTOR)
    np.testing.assert_allclose(tiled, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(23, 35), (16, 30), (40, 14)], ids=str)
def test_tiles_are_those_of_diffusers(size: tuple[int, int], open_sora_vae_bundle: Path) -> None:
    """The spatial half alone is compared, in mean and in deviation."""
    bundle, backend = open_bundle(open_sora_vae_bundle), OrtBackend(open_sora_vae_bundle)
    bundle = alone(bundle, encoding=bundle.manifest.latent.encoding[:1])
    pixels = np.tanh(noise(3, 2, *size))
    vae = random_spatial_vae(2)
    vae.tile_sample_min_size, vae.tile_latent_min_size = 16, 8
    vae.enable_tiling()
    with torch.no_grad():
        wanted = vae.encode(torch.from_numpy(pixels).transpose(0, 1)).latent_dist
    mean = encode(bundle, backend, pixels, lambda shape: np.zeros(shape, np.float32), 16)
    further = encode(bundle, backend, pixels, lambda shape: np.ones(shape, np.float32), 16)
    for made, original in ((mean, wanted.mean), (further - mean, wanted.std)):
        np.testing.assert_allclose(made, SCALE * original.transpose(0, 1).numpy(), rtol=0, atol=1e-5)
    whole = encode(bundle, backend, pixels, lambda shape: np.zeros(shape, np.float32))
    assert np.abs(whole - mean).max() > 1e-3  # the statistics of a tile are its own


def test_pixels_reach_an_engine_by_tiles_of_a_few_images(tmp_path: Path) -> None:
    pipeline, log = encoding(tmp_path / "bundle", CHAIN)
    pixels = noise(3, 19, 20, 15)  # 10 x 7 latents
    encode(pipeline.bundle, pipeline.backend, pixels, drawn(0), 16)
    image, chunk = "vae_encoder.spatial", "vae_encoder.temporal"
    assert log == [image] * 5 * (2 * 2) + [chunk] * 2
    sizes = {step.graph.name: step.at for step in encoder_steps(CHAIN, pixels.shape, 16)}
    assert {(at["pixel_height"], at["pixel_width"]) for at in sizes[image]} == {(16, 15), (16, 3), (8, 15), (8, 3)}
    assert {at["images"] for at in sizes[image]} == {4, 3}
    assert {(at["pixel_frames"], at["frames"], at["height"], at["width"]) for at in sizes[chunk]} == {
        (17, 5, 10, 7),
        (2, 1, 10, 7),
    }


def test_tiles_of_the_bundle(tmp_path: Path) -> None:
    pipeline, log = encoding(tmp_path / "bundle", CAUSAL.model_copy(update={"tile": 8, "tiles_chunks": True}))

    def engines_run(frames: int, *size: int, tile: int | None = None) -> int:
        log.clear()
        encode(pipeline.bundle, pipeline.backend, noise(3, frames, *size), drawn(0), tile)
        return len(log)

    assert engines_run(9, 8, 9) == 1
    assert engines_run(9, 8, 10) == 2 * 2
    assert engines_run(13, 8, 8) == 2 * 4  # several chunks are cut, too
    assert engines_run(13, 8, 8, tile=8) == 2
    with pytest.raises(OutOfRangeError, match=r"tiles of 12 pixels are not possible with this model"):
        engines_run(9, 16, 16, tile=12)


@pytest.mark.parametrize("tile", [None, 8])
@pytest.mark.parametrize("frames", [1, 17, 22])
def test_the_memory_of_an_encoder_is_planned(
    frames: int, tile: int | None, fake: tuple[Pipeline, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the memory of the graph that takes most, since graphs are loaded in turn."""
    pipeline, _ = fake
    allocated: dict[str, int] = {}
    empty, load = HostDevice.empty, pipeline.backend.load

    def counted(self: HostDevice, shape: tuple[int, ...], dtype: np.dtype) -> HostBuffer:
        buffer = empty(self, shape, dtype)
        allocated[list(allocated)[-1]] += buffer.nbytes
        return buffer

    pixels = noise(3, frames, 11, 15)
    plan = encoder_memory(pipeline.bundle, pipeline.backend, [pixels.shape, (3, 1, 11, 15)], tile, {})
    monkeypatch.setattr(HostDevice, "empty", counted)
    monkeypatch.setattr(pipeline.backend, "load", lambda graph: (allocated.setdefault(graph.name, 0), load(graph))[1])
    encode(pipeline.bundle, pipeline.backend, pixels, drawn(0), tile)
    assert plan.held == max(allocated.values()) > 0
    assert plan.arena is None
