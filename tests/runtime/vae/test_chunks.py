"""Videos cut into chunks: which latent frames give which frames, for every kind of VAE that is known."""

import itertools

import pytest

from adacache_engines.bundle.latent_space import ChunkRule, LatentSpace
from adacache_engines.errors import InputError
from adacache_export.frame_rules import CHUNKS_OF_17, EACH_FRAME, FIRST_THEN_FOURS
from adacache_runtime.vae.chunks import decoded_chunks, encoded_chunks, video_frames

OPEN_SORA = ChunkRule(frames=17, latents=5, stretch=4, spare="first")
CAUSAL = ChunkRule(frames=65, latents=17, stretch=4, short=3, shared=1)  # Open-Sora-Plan's
TEMPORAL = ChunkRule(frames=14, latents=14)  # Stable Video Diffusion's decoder
SINGLE = ChunkRule()
FRAMES = {"chunks": CHUNKS_OF_17, "causal": FIRST_THEN_FOURS, "each": EACH_FRAME}
RULES = {"chunks": OPEN_SORA, "causal": CAUSAL, "each": TEMPORAL}


def space(frames: str, chunks: ChunkRule) -> LatentSpace:
    rule = FRAMES[frames]
    return LatentSpace(channels=4, patch=(1, 1, 1), spatial_factor=8, frames=rule, decoder="some", chunks=chunks)


def decoded(frames: str, chunks: ChunkRule, latents: int, count: int | None = None) -> list[tuple[int, int, int, int]]:
    """The latent frames of each chunk, and which of the frames that come out are kept."""
    return [
        (chunk.start, chunk.stop, chunk.kept.start, chunk.kept.stop)
        for chunk in decoded_chunks(space(frames, chunks), latents, count)
    ]


def test_open_soras_groups_are_apart_and_lose_their_first_frames() -> None:
    assert decoded("chunks", OPEN_SORA, 15, 51) == [(0, 5, 3, 20), (5, 10, 3, 20), (10, 15, 3, 20)]
    assert decoded("chunks", OPEN_SORA, 8, 27) == [(0, 5, 3, 20), (5, 8, 2, 12)]
    assert decoded("chunks", OPEN_SORA, 1, 1) == [(0, 1, 3, 4)]
    assert decoded("chunks", OPEN_SORA, 6, 18) == [(0, 5, 3, 20), (5, 6, 3, 4)]
    assert decoded("chunks", OPEN_SORA, 8) == [(0, 5, 3, 20), (5, 8, 0, 12)]


def test_causal_chunks_share_a_latent_frame() -> None:
    assert decoded("causal", CAUSAL, 17, 65) == [(0, 17, 0, 65)]
    assert decoded("causal", CAUSAL, 33) == [(0, 17, 0, 65), (16, 33, 1, 65)]
    assert decoded("causal", CAUSAL, 56, 221)[-2:] == [(32, 49, 1, 65), (48, 56, 1, 29)]
    assert decoded("causal", CAUSAL, 18, 67) == [(0, 17, 0, 65), (16, 18, 1, 3)]  # two of four new ones


def test_others_are_as_long_as_their_latents() -> None:
    assert decoded("each", TEMPORAL, 16, 16) == [(0, 14, 0, 14), (14, 16, 0, 2)]
    assert decoded("each", SINGLE, 3) == [(0, 1, 0, 1), (1, 2, 0, 1), (2, 3, 0, 1)]


@pytest.mark.parametrize("name", RULES)
def test_every_frame_is_there_once(name: str) -> None:
    rule = RULES[name]
    for frames in range(1, 140):
        if name == "causal" and frames % 2 == 0:
            continue  # fewer latent frames than it takes; see below
        latents = space(name, rule).latent_frames(frames)
        chunks = decoded_chunks(space(name, rule), latents, frames)
        assert sum(chunk.count for chunk in chunks) == frames
        assert all(0 < chunk.count <= chunk.made == rule.decoded(chunk.stop - chunk.start) for chunk in chunks)
        assert chunks[0].start == 0
        assert chunks[-1].stop == latents
        for one, other in itertools.pairwise(chunks):
            assert other.start == one.stop - rule.shared
            assert one.stop - one.start == rule.latents
        made = encoded_chunks(rule, frames)
        assert sum(chunk.count for chunk in made) == latents
        assert made[-1].stop == frames
        assert all(chunk.made == rule.encoded(chunk.stop - chunk.start) for chunk in made)


def test_a_causal_video_of_an_even_number_is_shorter() -> None:
    assert space("causal", CAUSAL).latent_frames(64) == 16
    assert sum(chunk.count for chunk in decoded_chunks(space("causal", CAUSAL), 16, 64)) == 61


def test_frames_of_another_length_are_refused() -> None:
    with pytest.raises(InputError, match="15 latent frames are no video of 34 frames, which has 10"):
        decoded_chunks(space("chunks", OPEN_SORA), 15, 34)


@pytest.mark.parametrize(("latents", "frames"), [(15, 51), (8, 29), (5, 17), (1, 4), (6, 21)])
def test_given_latents_decide_over_the_condition(latents: int, frames: int) -> None:
    some = space("chunks", OPEN_SORA)
    assert video_frames(some, latents, 1000) == latents  # nothing decodes them
    graph = {"name": "decoder", "path": "onnx/decoder.onnx", "inputs": (), "outputs": ()}
    decoding = LatentSpace.model_validate({**some.model_dump(), "decoding": [graph]})
    assert video_frames(decoding, latents, 1000) == frames
    assert video_frames(decoding, 8, 27) == 27
