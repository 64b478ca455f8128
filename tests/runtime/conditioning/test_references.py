"""Where references go, and clips that continue one another."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import LatentSpace
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_export.frame_rules import CHUNKS_OF_17
from adacache_runtime.caching.policies.interval import FixedInterval
from adacache_runtime.conditioning.clips import check_continues, continuing, generate_clips
from adacache_runtime.conditioning.references import Placement, alignment, latent_index, place, placed, snapped
from adacache_runtime.pipeline import Pipeline
from tests.helpers import fake_model
from tests.helpers.fake_model import WIDTH, fake_pipeline, functions, manifest, request

PIXELS = manifest().latent
CONTINUED = PIXELS.continued
VAE = PIXELS.model_copy(update={"frames": CHUNKS_OF_17, "decoder": "none"})


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
    latents, mask = place(noise, [long, short], placements, align=5)
    np.testing.assert_array_equal(latents[:, :5], long[:, 5:])  # -4 of 10 begins at 6, the nearest group at 5
    np.testing.assert_array_equal(latents[:, 10:11], short)
    np.testing.assert_array_equal(latents[:, 5:10], noise[:, 5:10])
    np.testing.assert_array_equal(latents[:, 11:], noise[:, 11:])
    np.testing.assert_array_equal(mask, [0.5] * 5 + [1] * 5 + [0] + [1] * 4)
    freely, mask = place(noise, [long, short], placements)
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
    """Of each 17 frames the first latent has the first one, and four others each of the rest."""
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


def test_a_generation_keeps_a_reference(pipeline: Pipeline) -> None:
    noise, image = drawn(1, 2, WIDTH, 8, 2, 5), drawn(2, WIDTH, 1, 2, 5)
    begin = placed(asked(), noise, [image], [Placement(start=3)])
    result = pipeline.generate(begin)
    for sample in range(2):
        np.testing.assert_array_equal(result.latents[sample, :, 3:4], image)
    assert not np.array_equal(result.latents, pipeline.generate(asked(latents=noise)).latents)


def test_clips_continue_one_another(pipeline: Pipeline) -> None:
    requests = [asked(seed=seed, keep_calls=True) for seed in (7, 8, 9)]
    calls: list[int] = []
    whole = generate_clips(pipeline, requests, lambda record: calls.append(record.call))
    first = pipeline.generate(requests[0]).latents
    second = pipeline.generate(continuing(requests[1], PIXELS, first)).latents
    third = pipeline.generate(continuing(requests[2], PIXELS, second)).latents
    np.testing.assert_array_equal(second[:, :, :CONTINUED], first[:, :, -CONTINUED:])
    np.testing.assert_array_equal(third[:, :, :CONTINUED], second[:, :, -CONTINUED:])
    parts = [first, second[:, :, CONTINUED:], third[:, :, CONTINUED:]]
    np.testing.assert_array_equal(whole.latents, np.concatenate(parts, axis=2))
    assert [record.call for record in whole.trace.calls] == list(range(1, 13))
    assert calls == [1, 2, 3, 4] * 3
    assert whole.calls is not None
    assert whole.calls.shape == (12, *first.shape)


def test_a_video_of_one_clip_is_that_clip(pipeline: Pipeline) -> None:
    one = generate_clips(pipeline, [asked(seed=7)])
    np.testing.assert_array_equal(one.latents, pipeline.generate(asked(seed=7)).latents)
