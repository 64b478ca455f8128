"""Names of shape profiles, and the ranges that they stand for."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from adacache_engines.bundle.latent_space import ChunkRule
from adacache_engines.bundle.manifest import Graph, LatentSpace, Manifest
from adacache_engines.bundle.shape_profiles import covers, fixed_profile, shape_profile, vae_ranges
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_export.families.open_sora.sizes import NAMES
from adacache_export.frame_rules import CHUNKS_OF_17
from tests.helpers.model.fake_model import manifest

LIMITS = {"samples": (1, 4), "text": (1, 300), "frames": (1, 128), "height": (1, 135), "width": (1, 240)}


@pytest.fixture(scope="module")
def open_sora() -> Manifest:
    """The latent of Open-Sora 1.2."""
    latent = LatentSpace(channels=4, patch=(1, 2, 2), spatial_factor=8, frames=CHUNKS_OF_17, decoder="none")
    plain = manifest()
    text = plain.text.model_copy(update={"max_length": 300})
    return plain.model_copy(update={"latent": latent, "text": text, "names": NAMES, "profiles": {"default": LIMITS}})


@pytest.mark.parametrize(
    ("name", "latent", "tokens"),
    [  # latent sizes and tokens of a frame as published for Open-Sora 1.2
        ("144p:2s", (15, 18, 32), 144),
        ("240p:2s", (15, 30, 53), 405),
        ("480p:2s", (15, 60, 106), 1590),
        ("480p:4s", (30, 60, 106), 1590),
        ("720p:2s", (15, 90, 160), 3600),
    ],
)
def test_published_sizes(open_sora: Manifest, name: str, latent: tuple[int, int, int], tokens: int) -> None:
    profile = shape_profile(open_sora, name)
    assert tuple(profile[axis] for axis in ("frames", "height", "width")) == tuple((size,) * 3 for size in latent)
    assert profile["tokens"] == (tokens,) * 3
    assert profile["patch_frames"] == (latent[0],) * 3
    assert (profile["samples"], profile["batch"]) == ((1, 1, 1), (1, 2, 2))
    assert profile["text"] == (1, 300, 300)
    assert profile["pairs"] == (1, latent[0] - 1, latent[0] - 1)


def test_ranges(open_sora: Manifest) -> None:
    profile = shape_profile(open_sora, "240p..480p..720p:image..2s:1..4")
    assert profile["height"] == (30, 60, 90)
    assert profile["frames"] == (1, 15, 15)  # the usual one of two is the largest
    assert (profile["samples"], profile["batch"]) == ((1, 4, 4), (1, 8, 8))
    assert profile["tokens"] == (405, 1590, 3600)


small, large = some.integers(16, 500), some.integers(500, 1000)


@given(small, small, large, large, some.integers(1, 51), some.integers(51, 102), some.data())
def test_what_lies_between_is_covered(
    low_height: int, low_width: int, high_height: int, high_width: int, few: int, many: int, data: some.DataObject
) -> None:
    latent = LatentSpace(channels=4, patch=(1, 2, 2), spatial_factor=8, frames=CHUNKS_OF_17, decoder="none")
    plain = manifest().model_copy(update={"latent": latent, "profiles": {"default": LIMITS}})
    profile = shape_profile(plain, f"{low_width}x{low_height}..{high_width}x{high_height}:{few}f..{many}f")
    axes = {
        "frames": latent.latent_frames(data.draw(some.integers(few, many))),
        "height": data.draw(some.integers(low_height, high_height)) // 8,
        "width": data.draw(some.integers(low_width, high_width)) // 8,
    }
    sizes = {**axes, **latent.token_axes(**axes)}
    assert covers(profile, sizes)
    assert sizes["tokens"] == math.ceil(axes["height"] / 2) * math.ceil(axes["width"] / 2)
    assert not covers(profile, sizes | {"samples": 2})
    assert not covers(profile, sizes | {"height": high_height // 8 + 1})


def test_the_default_is_the_bundles_video() -> None:
    plain = manifest()
    profile = shape_profile(plain, fixed_profile(plain))
    video = plain.video
    assert [profile[axis][0] for axis in ("frames", "height", "width")] == [video.frames, video.height, video.width]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("480p", "SIZE:LENGTH"),
        ("480p:2s:1:1", "SIZE:LENGTH"),
        ("481p:2s", "'481p' is not known"),
        ("480p:3s", "'3s' is not known"),
        ("480x:2s", "'480x' is not known"),
        ("480p:2s:many", "'many' is not known"),
        ("240p..360p..480p..720p:2s", "more than MIN..USUAL..MAX"),
        ("720p..240p:2s", "goes down"),
    ],
)
def test_names_that_are_none(open_sora: Manifest, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        shape_profile(open_sora, name)


@pytest.mark.parametrize("name", ["1928x1080:2s", "4x4:2s", "480p:2s:0", "480p:2s:5", "480p:0f", "480p:9999f"])
def test_sizes_that_the_model_does_not_have(open_sora: Manifest, name: str) -> None:
    with pytest.raises(OutOfRangeError, match="no profile of this bundle fits"):
        shape_profile(open_sora, name)


def test_ranges_of_a_vae(open_sora: Manifest) -> None:
    """ChunkRule, a few images at once, and tiles of any size; what encodes takes also a part of a latent row."""
    chunks = ChunkRule(frames=17, latents=5, stretch=4, spare="first")
    axes = ("frames", "pixel_frames", "images", "height", "pixel_width")
    decoder, encoder = (Graph(name=name, path=name, inputs=(), outputs=()) for name in ("decoder", "encoder"))
    fed = {"decoding": (decoder,), "encoding": (encoder,), "chunks": chunks, "images": 4}
    space = open_sora.latent.model_copy(update=fed)
    profile = shape_profile(open_sora, "144p..240p..480p:2s")
    by_graph = {graph.name: vae_ranges(space, graph, profile) for graph in (decoder, encoder)}
    assert [by_graph["decoder"][axis] for axis in axes[:4]] == [(1, 5, 5), (1, 17, 17), (1, 4, 4), (1, 30, 60)]
    assert by_graph["encoder"]["height"] == (1, 30, 60)
    assert by_graph["encoder"]["pixel_width"] == (8, 424, 855)
    tiled = space.model_copy(update={"tile": 256})
    for graph in (decoder, encoder):
        assert [vae_ranges(tiled, graph, profile)[axis] for axis in ("height", "width")] == [(1, 30, 32), (1, 32, 32)]
    assert vae_ranges(tiled, encoder, profile)["pixel_width"] == (8, 256, 263)
    assert vae_ranges(tiled, decoder, profile)["height_2"] == (2, 60, 64)  # of carried features
    first = Graph(name="decoder.first", path="made.onnx", inputs=(), outputs=())
    alone = tiled.model_copy(update={"first_decoding": (first,)})
    assert vae_ranges(alone, first, profile) == vae_ranges(tiled, decoder, profile)
    inner = Graph(name="encoder.temporal", path="made.onnx", inputs=(), outputs=())
    both = space.model_copy(update={"encoding": (encoder, inner)})
    assert vae_ranges(both, inner, profile)["height"] == (18, 30, 60)  # tiles end where pixels do
