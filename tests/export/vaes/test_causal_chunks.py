"""How Open-Sora-Plan's latents are cut into chunks and tiles, against the original's rules written down once more."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from adacache_engines.bundle.latent_space import ChunkRule, LatentSpace
from adacache_engines.contract.device import Array, HostBuffer, HostDevice
from adacache_export.frame_rules import FIRST_THEN_FOURS
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.samplers.update import Floats
from adacache_runtime.vae.chunks import decoded_chunks
from adacache_runtime.vae.decode import decode
from adacache_runtime.vae.tiles import spans
from tests.helpers.model.fake_model import WIDTH, fake_pipeline, functions, graph, request, spec
from tests.helpers.originals.causal_chunks_reference import in_pieces

FACTOR, CHUNK, TILE = 2, 3, 8
DECODER = graph(
    "decoder",
    (spec("latents", 1, WIDTH, "frames", "height", "width"),),
    (spec("pixels", 1, 3, "pixel_frames", "pixel_height", "pixel_width"),),
)
SPACE = LatentSpace(
    channels=WIDTH,
    patch=(1, 1, 1),
    spatial_factor=FACTOR,
    frames=FIRST_THEN_FOURS,
    decoder="causal-vae",
    decoding=(DECODER,),
    chunks=ChunkRule(frames=4 * CHUNK - 3, latents=CHUNK, stretch=4, short=3, shared=1),
    tile=FACTOR * TILE,
    tiles_chunks=True,
)


def noise(*shape: int) -> Floats:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def grow(piece: Floats) -> Floats:
    """(3, t, h, w) -> (3, 4 t - 3, 2 h, 2 w); what it gives depends on the whole of the piece."""
    frames = piece.repeat(4, 1)[:, 3:]
    return np.float32(frames.repeat(FACTOR, 2).repeat(FACTOR, 3) + piece.mean())


def run_decoder(given: Mapping[str, Array]) -> dict[str, Array]:
    return {"pixels": grow(given["latents"][0])[None]}


@pytest.fixture
def decoding(tmp_path: Path) -> tuple[Pipeline, list[str]]:
    return fake_pipeline(tmp_path / "bundle", {**functions(), "decoder": run_decoder}, latent=SPACE)


original = partial(in_pieces, decode=grow, chunk=CHUNK, tile=TILE, factor=FACTOR)


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
def test_chunks_of_latents(frames: int, expected: list[tuple[int, int]]) -> None:
    """The rest of a clip is a chunk where it is at least two latent frames; one is the end of the chunk before."""
    chunks = ChunkRule(frames=65, latents=17, stretch=4, short=3, shared=1)
    cut = decoded_chunks(SPACE.model_copy(update={"chunks": chunks}), frames)
    assert [(chunk.start, chunk.stop) for chunk in cut] == expected
    assert sum(chunk.count for chunk in cut) == 4 * (frames - 1) + 1


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
    assert spans(size, 32) == expected


@pytest.mark.parametrize("size", [(8, 7), (9, 4), (4, 9), (8, 8), (15, 20), (14, 13)], ids=str)
@pytest.mark.parametrize("frames", [1, 3, 4, 5, 8])
def test_a_clip_is_cut_up_as_the_original_does_it(
    frames: int, size: tuple[int, int], decoding: tuple[Pipeline, list[str]]
) -> None:
    pipeline, log = decoding
    latents = noise(WIDTH, frames, *size)
    made = np.concatenate(list(decode(pipeline.bundle, pipeline.backend, latents)), axis=1)
    assert made.shape == (3, 4 * frames - 3, FACTOR * size[0], FACTOR * size[1])
    assert np.abs(made - original(latents)).max() < 1e-5
    whole = frames <= CHUNK and max(size) <= TILE
    assert (len(log) == 1) == whole
    assert np.array_equal(made, grow(latents)) == whole


def test_one_chunk_is_held_at_a_time(decoding: tuple[Pipeline, list[str]]) -> None:
    pipeline, log = decoding
    seen = [(part.shape[1], len(log)) for part in decode(pipeline.bundle, pipeline.backend, noise(WIDTH, 6, 8, 4))]
    assert seen == [(9, 2), (8, 4), (4, 6)]  # of two tiles each


def test_tiles_of_a_run_replace_those_of_the_bundle(decoding: tuple[Pipeline, list[str]]) -> None:
    pipeline, log = decoding
    latents = noise(WIDTH, 2, 15, 20)
    list(decode(pipeline.bundle, pipeline.backend, latents, tile=40))
    assert len(log) == 1


@pytest.mark.parametrize("frames", [1, 9, 17, 29])
@pytest.mark.parametrize("size", [(10, 14), (16, 16)], ids=str)
def test_the_memory_is_planned(
    frames: int, size: tuple[int, int], decoding: tuple[Pipeline, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, _ = decoding
    allocated: list[int] = []
    empty = HostDevice.empty

    def counted(self: HostDevice, shape: tuple[int, ...], dtype: np.dtype) -> HostBuffer:
        buffer = empty(self, shape, dtype)
        allocated.append(buffer.nbytes)
        return buffer

    height, width = size
    plan = pipeline.prepare(request(height=height, width=width, frames=frames, policy=NeverReuse())).memory
    latents = noise(WIDTH, SPACE.latent_frames(frames), height // FACTOR, width // FACTOR)
    monkeypatch.setattr(HostDevice, "empty", counted)
    list(decode(pipeline.bundle, pipeline.backend, latents, frames))
    assert plan.decoder == sum(allocated) > 0
