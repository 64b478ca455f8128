"""Where references go, and clips that continue one another."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import LatentSpace
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_export.frame_rules import CHUNKS_OF_17
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.conditioning.clips import check_continues
from adacache_runtime.conditioning.references import Placement, alignment, latent_index, mask_of, place, snapped
from adacache_runtime.pipeline import Pipeline
from tests.helpers.model import fake_model
from tests.helpers.model.fake_model import fake_pipeline, functions, manifest, request

PIXELS = manifest().latent
CONTINUED = PIXELS.continued
VAE = PIXELS.model_copy(update={"frames": CHUNKS_OF_17, "decoder": "none"})


LENGTHS = (10, 1)  # latent frames of two references


def drawn(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize(
    ("index", "frames", "expected"),
    [
        *((0, 15, 0), (2, 15, 0), (3, 15, 5), (7, 15, 5), (8, 15, 10), (12, 15, 10), (13, 15, 10), (14, 15, 10)),
        *((13, 20, 15), (17, 18, 15), (18, 18, 15), (4, 5, 0), (3, 4, 0), (0, 1, 0)),
    ],
)
def test_starts_are_the_nearest_beginnings_of_groups(index: int, frames: int, expected: int) -> None:
    """Half or less goes down, and nothing goes up beyond the last whole group: -1 of 15 lands at 10."""
    assert snapped(index, frames, 5) == expected
    assert snapped(index, frames, 1) == min(index, frames)


def test_references_take_the_place_of_noise() -> None:
    noise, long, short = drawn(1, 4, 15, 2, 3), drawn(2, 4, 10, 2, 3), drawn(3, 4, 1, 2, 3)
    placements = (Placement(0, -4, 0, 8, 0.5), Placement(1, 0, -1, 3))
    latents = place(noise, [long, short], placements, align=5)
    mask = mask_of(placements, LENGTHS, 15, align=5)
    np.testing.assert_array_equal(latents[:, :5], long[:, 5:])  # -4 of 10 begins at 6, the nearest group at 5
    np.testing.assert_array_equal(latents[:, 10:11], short)
    np.testing.assert_array_equal(latents[:, 5:10], noise[:, 5:10])
    np.testing.assert_array_equal(latents[:, 11:], noise[:, 11:])
    np.testing.assert_array_equal(mask, [0.5] * 5 + [1] * 5 + [0] + [1] * 4)
    freely, mask = place(noise, [long, short], placements), mask_of(placements, LENGTHS, 15)
    np.testing.assert_array_equal(freely[:, :4], long[:, 6:])
    np.testing.assert_array_equal(freely[:, 14:], short)
    np.testing.assert_array_equal(mask, [0.5] * 4 + [1] * 10 + [0])


@pytest.mark.parametrize(
    ("placement", "reference", "message"),
    [
        (Placement(reference=1), (4, 1, 2, 3), "there is no reference 1, of 1"),
        (Placement(reference=-1), (4, 1, 2, 3), "there is no reference -1"),
        (Placement(), (4, 1, 2, 2), "encode it at the video's size"),
        (Placement(start=15), (4, 1, 2, 3), "latent frame 15 is none of the video, which has 15"),
        (Placement(start=-16), (4, 1, 2, 3), "latent frame -16 is none of the video"),
        (Placement(reference_start=1), (4, 1, 2, 3), "latent frame 1 is none of reference 0, which has 1"),
    ],
)
def test_what_cannot_be_placed(placement: Placement, reference: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        place(drawn(1, 4, 15, 2, 3), [drawn(2, *reference)], [placement], align=5)


def test_a_frame_is_in_a_latent_frame() -> None:
    """In each 17 frames, the first latent frame holds the first frame, and the others hold four each."""
    frames = {0: 0, 1: 1, 4: 1, 5: 2, 16: 4, 17: 5, 34: 10, 50: 14, -1: 14}
    assert {frame: latent_index(VAE, frame, 51) for frame in frames} == frames
    assert [latent_index(PIXELS, frame, 8) for frame in (0, 3, 7, -1, -8)] == [0, 3, 7, 7, 0]
    assert (alignment(VAE), alignment(PIXELS)) == (5, 1)
    for frame in (8, -9):
        with pytest.raises(OutOfRangeError, match=f"no frame {frame}; it has 8"):
            latent_index(PIXELS, frame, 8)


@pytest.mark.parametrize(("space", "frames"), [(VAE, 5), (VAE, 16), (VAE, 1), (PIXELS, 5)])
def test_clips_that_cannot_continue(space: LatentSpace, frames: int) -> None:
    with pytest.raises(InputError, match=f"clips of {frames} latent frames cannot continue one another"):
        check_continues(space, frames)


# generations


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return fake_pipeline(tmp_path / "bundle", functions(), **fake_model.conditioned(manifest()))[0]


def asked(**options: Any) -> Any:
    return request(**{"frames": 8, "steps": 4, "policy": FixedInterval(every=2), **options})


def test_an_image_is_a_frame_of_the_video(pipeline: Pipeline) -> None:
    """A clip of pixels is kept as it is, in the videos of all prompts."""
    image = np.random.default_rng(2).integers(0, 256, (2, 5, 3), np.uint8)
    result = pipeline.generate(asked(images=(image,), image_at=3))
    expected = image.astype(np.float32).transpose(2, 0, 1)[:, None] / np.float32(127.5) - np.float32(1)
    for sample in range(2):
        np.testing.assert_array_equal(result.latents[sample, :, 3:4], expected)
    assert not np.array_equal(result.latents, pipeline.generate(asked()).latents)


def test_clips_continue_one_another(pipeline: Pipeline) -> None:
    """The whole is what clips give that are made one by one, each from the end of the one before by a mask."""
    calls: list[int] = []
    whole = pipeline.generate(asked(seed=7, loops=3, keep_calls=True), lambda record: calls.append(record.call))
    made = [pipeline.generate(asked(seed=7)).latents]
    for seed in (8, 9):
        noise = drawn(seed, *made[0].shape)
        noise[:, :, :CONTINUED] = made[-1][:, :, -CONTINUED:]
        mask = np.ones((2, 8), np.float32)
        mask[:, :CONTINUED] = 0
        made.append(pipeline.generate(asked(seed=seed, latents=noise, mask=mask)).latents)
    np.testing.assert_array_equal(made[1][:, :, :CONTINUED], made[0][:, :, -CONTINUED:])
    parts = [made[0], *(clip[:, :, CONTINUED:] for clip in made[1:])]
    np.testing.assert_array_equal(whole.latents, np.concatenate(parts, axis=2))
    assert [record.call for record in whole.trace.calls] == calls == list(range(1, 13))
    assert whole.calls is not None
    assert whole.calls.shape == (12, *made[0].shape)
