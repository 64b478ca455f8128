"""A VAE that is causal in time: what it carries from chunk to chunk, in how many buffers, and for whom."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from adacache_engines.bundle.latent_space import ChunkRule
from adacache_engines.contract.device import HostBuffer, HostDevice
from adacache_engines.errors import InputError
from adacache_runtime.memory.estimate import encoder_memory
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.samplers.update import Floats
from adacache_runtime.vae.carrying import load_step
from adacache_runtime.vae.chunks import decoded_chunks, encoded_chunks
from adacache_runtime.vae.decode import decode, decoder_steps
from adacache_runtime.vae.encode import drawn, encode
from tests.helpers.model.fake_model import WIDTH, fake_pipeline, request
from tests.helpers.model.fake_vae import CARRYING, CARRYING_ENGINES, FACTOR, blocks, causal, larger, noise

CARRIED_NBYTES = 4 * WIDTH * FACTOR * FACTOR  # for each latent pixel


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, list[str]]:
    return fake_pipeline(tmp_path_factory.mktemp("carrying") / "bundle", CARRYING_ENGINES, latent=CARRYING)


def decoded(pipeline: Pipeline, latents: Floats, chunk: int = 1, tile: int | None = None) -> Floats:
    """Decode so many latent frames at a time."""
    rule = ChunkRule(frames=4 * chunk, latents=chunk, stretch=4, first_alone=True)
    manifest = pipeline.bundle.manifest
    latent = manifest.latent.model_copy(update={"chunks": rule})
    bundle = replace(pipeline.bundle, manifest=manifest.model_copy(update={"latent": latent}))
    return np.concatenate(list(decode(bundle, pipeline.backend, latents, tile=tile)), axis=1)


def whole(latents: Floats) -> Floats:
    """Return what the fake decoder makes of a whole video at once."""
    return causal(larger(latents)[None], None).repeat(4, 2)[0, :, 3:]


@settings(max_examples=20)
@given(frames=some.integers(1, 9), chunk=some.integers(1, 4), height=some.integers(1, 12), width=some.integers(1, 12))
def test_chunks_of_any_length_give_the_whole_video(
    frames: int, chunk: int, height: int, width: int, fake: tuple[Pipeline, list[str]]
) -> None:
    pipeline, log = fake
    latents = noise(WIDTH, frames, height, width)
    log.clear()
    np.testing.assert_array_equal(decoded(pipeline, latents, chunk), whole(latents))
    assert log == ["decoder.first"] + ["decoder"] * -(-(frames - 1) // chunk)
    tiled = decoded(pipeline, latents, chunk, tile=4 * FACTOR)
    np.testing.assert_allclose(tiled, whole(latents), rtol=0, atol=1e-6)


@settings(max_examples=20)
@given(latent_frames=some.integers(1, 6), height=some.integers(2, 25), width=some.integers(2, 25))
def test_the_encoder_carries_too(latent_frames: int, height: int, width: int, fake: tuple[Pipeline, list[str]]) -> None:
    """The encoder gives the mean alone, so that no noise is drawn."""
    pipeline, _ = fake
    pixels = noise(3, 4 * latent_frames - 3, height, width)

    def never(_shape: tuple[int, ...]) -> Floats:
        raise AssertionError("noise was drawn")

    made = encode(pipeline.bundle, pipeline.backend, pixels, never)
    np.testing.assert_array_equal(made, causal(blocks(pixels[None, :, ::4]), None)[0])
    tiled = encode(pipeline.bundle, pipeline.backend, pixels, never, 4 * FACTOR)
    np.testing.assert_allclose(tiled, made, rtol=0, atol=1e-6)


def test_frames_that_are_no_whole_latent_frames_are_not_encoded(fake: tuple[Pipeline, list[str]]) -> None:
    pipeline, _ = fake
    with pytest.raises(InputError, match=r"a video of 7 frames cannot be encoded: .*; choose 5 or 9 frames"):
        encode(pipeline.bundle, pipeline.backend, noise(3, 7, 4, 4), drawn(0))


def test_chunks_of_a_video_whose_first_frame_is_alone() -> None:
    cut = [(chunk.start, chunk.stop, chunk.kept) for chunk in decoded_chunks(CARRYING, 3)]
    assert cut == [(0, 1, slice(0, 1)), (1, 2, slice(0, 4)), (2, 3, slice(0, 4))]
    assert [chunk.count for chunk in decoded_chunks(CARRYING, 3, 7)] == [1, 4, 2]
    made = [(chunk.start, chunk.stop, chunk.made) for chunk in encoded_chunks(CARRYING.chunks, 9)]
    assert made == [(0, 1, 1), (1, 5, 1), (5, 9, 1)]


def test_two_videos_at_a_time_share_nothing(fake: tuple[Pipeline, list[str]]) -> None:
    pipeline, _ = fake
    latents = [noise(WIDTH, 5, 6, 7), -3 * noise(WIDTH, 5, 6, 7)]
    running = [decode(pipeline.bundle, pipeline.backend, one, tile=4 * FACTOR) for one in latents]
    made = list(zip(*running, strict=True))
    for number, one in enumerate(latents):
        alone_again = decoded(pipeline, one, tile=4 * FACTOR)
        np.testing.assert_array_equal(np.concatenate([parts[number] for parts in made], 1), alone_again)


@pytest.fixture
def allocated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of every buffer from now on."""
    empty, found = HostDevice.empty, []

    def counted(self: HostDevice, shape: tuple[int, ...], dtype: np.dtype) -> HostBuffer:
        buffer = empty(self, shape, dtype)
        found.append(buffer.nbytes)
        return buffer

    monkeypatch.setattr(HostDevice, "empty", counted)
    return found


@pytest.mark.parametrize(
    ("frames", "tile", "sets"),
    [
        (1, None, {(9, 13): 1}),  # an image
        (2, None, {(9, 13): 2}),
        (40, None, {(9, 13): 2}),
        # 8 rows of every 6, and the rest; so for columns
        (40, 16, {(8, 8): 1 + 1, (8, 7): 1 + 1, (8, 1): 1 + 1, (3, 8): 1 + 1, (3, 7): 1 + 1, (3, 1): 1 + 1}),
        (40, 8, {(4, 4): 8 + 1, (4, 1): 2 + 1, (3, 4): 4 + 1, (3, 1): 1 + 1}),
    ],
)
def test_a_set_for_each_tile_and_one_more_are_all_that_is_carried(
    frames: int,
    tile: int | None,
    sets: dict[tuple[int, int], int],
    fake: tuple[Pipeline, list[str]],
    allocated: list[int],
) -> None:
    """The number of live buffers does not depend on the length of the video."""
    pipeline, _ = fake
    for step in decoder_steps(CARRYING, (WIDTH, frames, 9, 13), tile=tile):
        load_step(step, pipeline.backend)
    wanted = Counter({CARRIED_NBYTES * height * width: count for (height, width), count in sets.items()})
    # the other buffers are latents and pixels, of which each shape has one a graph
    others = Counter(
        nbytes
        for height, width in sets
        for made in ((1, 4) if frames > 1 else (1,))
        for nbytes in (4 * WIDTH * height * width, 4 * 3 * made * FACTOR * FACTOR * height * width)
    )
    assert Counter(allocated) == wanted + others


@pytest.mark.parametrize("tile", [None, 8])
@pytest.mark.parametrize("frames", [1, 5, 21])
def test_the_memory_of_carried_tensors_is_estimated(
    frames: int, tile: int | None, fake: tuple[Pipeline, list[str]], allocated: list[int]
) -> None:
    pipeline, _ = fake
    plan = pipeline.prepare(request(height=14, width=16, frames=frames, tile=tile)).memory
    allocated.clear()
    list(decode(pipeline.bundle, pipeline.backend, noise(WIDTH, 1 + (frames - 1) // 4, 7, 8), frames, tile))
    assert plan.decoder == sum(allocated)
    pixels = noise(3, frames, 14, 16)
    held = encoder_memory(pipeline.bundle, pipeline.backend, [pixels.shape], tile, {}).held
    allocated.clear()
    encode(pipeline.bundle, pipeline.backend, pixels, drawn(0), tile)
    assert held == sum(allocated)
