"""Engines of Open-Sora's VAE against the original's tensors, and the whole against its halves in torch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_runtime.samplers.update import Floats
from adacache_runtime.vae.decode import decode
from adacache_runtime.vae.encode import drawn, encode
from tests.helpers.originals.reference import OPEN_SORA, arrays, worst
from tests.helpers.tiny_models.vae_bundle import (
    OPEN_SORA_LATENT,
    SCALE,
    SHIFT,
    alone,
    random_spatial_vae,
)

pytestmark = pytest.mark.slow  # exports the VAE
TOLERANCE = 1e-5
FACTOR = 0.18215
MEAN, DEVIATION = (np.array(values, np.float32)[:, None, None, None] for values in (SHIFT, SCALE))


@pytest.fixture(scope="module")
def original() -> dict[str, Floats]:
    return arrays(OPEN_SORA / "outputs_vae_temporal_tiny.npz")


@pytest.fixture(scope="module")
def temporal(open_sora_vae_bundle: Path) -> Bundle:
    """The temporal half alone, as the original was run: the spatial VAE does nothing."""
    bundle = open_bundle(open_sora_vae_bundle)
    space = bundle.manifest.latent
    return alone(bundle, decoding=space.decoding[:1], encoding=space.encoding[1:], spatial_factor=1)


@pytest.fixture(scope="module")
def whole(open_sora_vae_bundle: Path) -> Bundle:
    return open_bundle(open_sora_vae_bundle)


@pytest.fixture(scope="module")
def backend(open_sora_vae_bundle: Path) -> OrtBackend:
    return OrtBackend(open_sora_vae_bundle)


def noise(*shape: int) -> Floats:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def no_noise(shape: tuple[int, ...]) -> Floats:
    """Takes the mean of each distribution for its sample."""
    return np.zeros(shape, np.float32)


def video(bundle: Bundle, backend: OrtBackend, latents: Floats, frames: int | None = None, tile: int | None = None):
    return np.concatenate(list(decode(bundle, backend, latents, frames, tile)), axis=1)


# parity with the original


@pytest.mark.parametrize(("case", "frames"), [("pipe_decode", 27), ("image_decode", 1)])
def test_decoding_is_the_originals(
    case: str, frames: int, temporal: Bundle, backend: OrtBackend, original: dict[str, Floats]
) -> None:
    given = video(temporal, backend, original[f"{case}.z"][0], frames)
    assert worst(given, original[f"{case}.x_spatial_latent"][0]) < TOLERANCE


def test_one_group_is_the_originals(temporal: Bundle, backend: OrtBackend, original: dict[str, Floats]) -> None:
    mean = original["encode.moments"][0, :4]
    given = video(temporal, backend, (mean - MEAN) / DEVIATION, 17)
    assert worst(given, original["decode_raw.x"][0]) < TOLERANCE


def test_encoding_is_the_originals(temporal: Bundle, backend: OrtBackend, original: dict[str, Floats]) -> None:
    frames = original["encode.x"][0]
    mean, log_variance = np.split(original["encode.moments"][0], 2)
    given = encode(temporal, backend, frames, no_noise)
    assert worst(DEVIATION * given + MEAN, mean) < TOLERANCE
    further = encode(temporal, backend, frames, lambda shape: np.ones(shape, np.float32))
    assert worst(2 * np.log(DEVIATION * (further - given)), log_variance) < TOLERANCE


# the whole


@pytest.fixture(scope="module")
def spatial() -> AutoencoderKL:
    return random_spatial_vae(2)


def pixels_of(spatial: AutoencoderKL, coded: Floats) -> Floats:
    """(C, F, H, W) to (3, F, 2 H, 2 W)."""
    with torch.no_grad():
        decoded = spatial.decode(torch.from_numpy(coded).transpose(0, 1) / FACTOR).sample
    return decoded.transpose(0, 1).numpy()


@pytest.mark.parametrize(("latents", "frames"), [(8, 27), (5, 17), (6, 18), (1, 1)])
def test_decoding_is_that_of_both_halves(
    latents: int, frames: int, whole: Bundle, temporal: Bundle, backend: OrtBackend, spatial: AutoencoderKL
) -> None:
    given = noise(4, latents, 3, 5)
    wanted = pixels_of(spatial, video(temporal, backend, given, frames))
    parts = list(decode(whole, backend, given, frames))
    assert worst(np.concatenate(parts, axis=1), wanted) < 2e-5
    assert wanted.shape == (3, frames, 6, 10)
    groups = [min(17, frames - start) for start in range(0, frames, 17)]
    assert [part.shape[1] for part in parts] == [min(4, group - i) for group in groups for i in range(0, group, 4)]


def test_the_number_of_images_at_once_changes_no_value(whole: Bundle, backend: OrtBackend) -> None:
    latents = noise(4, 6, 3, 5)
    usual = video(whole, backend, latents, 18)
    for images in (1, 3, 17):
        assert worst(video(alone(whole, images=images), backend, latents, 18), usual) < 2e-6


def test_groups_are_independent(whole: Bundle, backend: OrtBackend) -> None:
    latents = noise(4, 10, 2, 3)
    apart = [video(whole, backend, latents[:, :5]), video(whole, backend, latents[:, 5:])]
    np.testing.assert_array_equal(video(whole, backend, latents, 34), np.concatenate(apart, axis=1))


def test_the_frames_decide_what_is_left_of_the_last_group(whole: Bundle, backend: OrtBackend) -> None:
    latents = noise(4, 6, 2, 3)
    longest = video(whole, backend, latents)
    assert longest.shape[1] == 21
    for frames in (18, 19, 20, 21):
        given = video(whole, backend, latents, frames)
        np.testing.assert_array_equal(given[:, :17], longest[:, :17])
        np.testing.assert_array_equal(given[:, 17:], longest[:, -(frames - 17) :])
    with pytest.raises(InputError, match="6 latent frames are no video of 17 frames"):
        video(whole, backend, latents, 17)


def test_tiles(whole: Bundle, backend: OrtBackend) -> None:
    latents = noise(4, 2, 5, 11)
    usual = video(whole, backend, latents, 5)
    np.testing.assert_array_equal(video(whole, backend, latents, 5, 24), usual)  # one tile
    tiled = video(whole, backend, latents, 5, 16)  # of 8 columns of latents, which overlap by 2
    assert tiled.shape == usual.shape
    assert np.abs(tiled - usual).max() > 1e-3
    np.testing.assert_array_equal(tiled, video(alone(whole, tile=16), backend, latents, 5))
    with pytest.raises(OutOfRangeError, match=r"tiles of 20 pixels are not possible .* a multiple of 8"):
        video(whole, backend, latents, 5, 20)


@pytest.mark.parametrize("frames", [1, 17, 22])
def test_encoding_is_that_of_both_halves(
    frames: int, whole: Bundle, temporal: Bundle, backend: OrtBackend, spatial: AutoencoderKL
) -> None:
    pixels = np.tanh(noise(3, frames, 6, 11))  # the last column is none of latents
    draw, again, calls = drawn(7), drawn(7), []

    def recorded(shape: tuple[int, ...]) -> Floats:
        calls.append(shape)
        return draw(shape)

    given = encode(whole, backend, pixels, recorded)
    latent_frames = OPEN_SORA_LATENT.latent_frames(frames)
    assert given.shape == (4, latent_frames, 3, 5)
    assert given.dtype == np.float32
    groups = [min(17, frames - start) for start in range(0, frames, 17)]
    assert calls == [(frames, 4, 3, 5), *((1, 4, -(-group // 4), 3, 5) for group in groups)]
    with torch.no_grad():
        posterior = spatial.encode(torch.from_numpy(pixels).transpose(0, 1)).latent_dist
    sample = posterior.mean + posterior.std * torch.from_numpy(again((frames, 4, 3, 5)))
    coded = (FACTOR * sample).transpose(0, 1).numpy()
    assert worst(given, encode(temporal, backend, coded, again)) < 2e-5


def test_the_same_seed_gives_the_same_latents(whole: Bundle, backend: OrtBackend) -> None:
    pixels = np.tanh(noise(3, 5, 4, 4))
    one, same, other = (encode(whole, backend, pixels, drawn(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    mean = encode(whole, backend, pixels, no_noise)
    assert np.abs(one - mean).max() > 0


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (3, 0, 4, 4), (3, 1, 1, 4), (3, 4, 4)])
def test_what_cannot_be_encoded(shape: tuple[int, ...], whole: Bundle, backend: OrtBackend) -> None:
    with pytest.raises(InputError, match=r"expected \(3, frames, height, width\), at least 2 pixels each way"):
        encode(whole, backend, np.zeros(shape, np.float32), no_noise)


def test_what_else_cannot_be_encoded(whole: Bundle, backend: OrtBackend) -> None:
    pixels = np.zeros((3, 1, 8, 8), np.float32)
    with pytest.raises(InputError, match="no encoder of images and clips: export the checkpoint with --vae DIR"):
        encode(alone(whole, encoding=()), backend, pixels, no_noise)
    pixels[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="contain NaN"):
        encode(whole, backend, pixels, no_noise)
