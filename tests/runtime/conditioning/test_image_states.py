"""A model that attends to states of an image: how they are made, who shares them, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import IMAGE_STATES
from adacache_engines.contract.device import HostDevice
from adacache_engines.contract.fake import FakeBackend
from adacache_engines.errors import InputError
from adacache_runtime.checking import check
from adacache_runtime.commands.array_files import read_latents
from adacache_runtime.conditioning.image_states import image_states, normalised
from adacache_runtime.media.pictures import middle_square
from adacache_runtime.pipeline import Pipeline
from tests.helpers.model.fake_image import ENGINES, RULE, SIDE, TOKENS, WITH_ENCODER, attending
from tests.helpers.model.fake_model import SIZE, WIDTH, fake_pipeline, functions, manifest, request

PICTURE = np.random.default_rng(3).integers(0, 256, (9, 6, 3), np.uint8)
SQUARE = middle_square(PICTURE[None], RULE.shorter, SIDE)
FRAMES, HEIGHT, ACROSS = SIZE
BESIDE = np.ones((1 + WIDTH, FRAMES, HEIGHT, ACROSS), np.float32)


def opened(folder: Path, **engines: Any) -> tuple[Pipeline, list[str]]:
    return fake_pipeline(folder, {**functions(), **ENGINES, **engines}, **attending(manifest()))


@pytest.mark.slow  # imports transformers
@pytest.mark.parametrize("size", [(9, 6), (6, 9), (5, 5), (5, 40), (301, 7), (4, 4), (64, 48)])
@pytest.mark.parametrize("shorter", [SIDE, SIDE + 1, SIDE + 4])
def test_an_image_is_prepared_as_clips_processor_does_it(size: tuple[int, int], shorter: int) -> None:
    processors = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    from PIL import Image

    rule = RULE.model_copy(update={"shorter": shorter, "mean": (0.2, 0.5, 0.7), "deviation": (0.3, 0.1, 1.5)})
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    processor = processors.CLIPImageProcessorPil(
        size=shorter, crop_size=SIDE, image_mean=list(rule.mean), image_std=list(rule.deviation)
    )
    expected = processor(images=Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    made = normalised(rule, middle_square(pixels[None], shorter, SIDE))
    assert made.shape == expected.shape == (1, 3, SIDE, SIDE)
    np.testing.assert_allclose(made, expected, atol=1e-6)


def test_graphs_of_the_encoder_are_loaded_in_turn() -> None:
    backend = FakeBackend(ENGINES)
    made = image_states(WITH_ENCODER, backend, SQUARE)
    assert made.shape == (1, TOKENS, WIDTH)
    assert backend.log == ["image_encoder.embed", "image_encoder.00"]
    first = normalised(WITH_ENCODER, SQUARE).reshape(1, 3, -1)
    np.testing.assert_array_equal(made, 2 * first[:, :, :WIDTH])


def test_states_are_made_once_and_shared_by_all_prompts_and_branches(tmp_path: Path) -> None:
    seen: list[NDArray[np.float32]] = []

    def project(given: Any) -> Any:
        seen.append(given[IMAGE_STATES].copy())
        return ENGINES["image"](given)

    pipeline, log = opened(tmp_path / "bundle", image=project)
    made = pipeline.generate(request(images=(PICTURE,), steps=3)).latents
    counts = {name: log.count(name) for name in ("image_encoder.embed", "image", "first.image", "spatial.00")}
    assert counts == {"image_encoder.embed": 1, "image": 1, "first.image": 1, "spatial.00": 3}
    (states,) = seen
    np.testing.assert_array_equal(states, image_states(WITH_ENCODER, FakeBackend(ENGINES), SQUARE))
    assert made.shape[0] == 2
    other = pipeline.generate(request(images=(255 - PICTURE,), steps=3, image_states=states[0])).latents
    again = pipeline.generate(request(images=(255 - PICTURE,), steps=3)).latents
    np.testing.assert_array_equal(
        pipeline.generate(request(images=(255 - PICTURE,), steps=3, image_square=255 - SQUARE[0])).latents,
        pipeline.generate(request(images=(255 - PICTURE,), steps=3)).latents,
    )
    assert not np.array_equal(other, again), "the states are those that are given, the encoded video is the image's"


def test_states_and_encoded_video_may_be_given_in_place_of_the_image(tmp_path: Path) -> None:
    pipeline, log = opened(tmp_path / "bundle")
    states = np.random.default_rng(2).standard_normal((TOKENS, WIDTH), np.float32)
    noise = np.random.default_rng(4).standard_normal((2, WIDTH, FRAMES, HEIGHT, ACROSS), np.float32)
    np.savez(tmp_path / "z.npz", latents=noise, image_states=states, video_condition=BESIDE)
    pipeline.generate(request(steps=2, **read_latents(tmp_path / "z.npz")))
    assert "image_encoder.embed" not in log
    assert log.count("image") == 1


def test_a_branch_that_runs_by_itself_meets_the_whole_image(tmp_path: Path) -> None:
    """One guidance branch gives what it gives beside the other."""
    pipeline, _ = opened(tmp_path / "bundle")
    alone = pipeline.generate(request(images=(PICTURE,), steps=2, guidance=1.0, prompts_count=1)).latents
    both = pipeline.generate(request(images=(PICTURE,), steps=2, guidance=1.0, prompts_count=2)).latents
    np.testing.assert_array_equal(alone[0], both[0])


def test_memory_is_estimated_with_the_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weighed = tuple(graph.model_copy(update={"weights_nbytes": 1000 + i}) for i, graph in enumerate(RULE_STAGES))
    changes = attending(manifest(), WITH_ENCODER.model_copy(update={"encoder_stages": weighed}))
    pipeline, _ = fake_pipeline(tmp_path / "bundle", {**functions(), **ENGINES}, **changes)
    planned = pipeline.prepare(request(images=(PICTURE,), steps=2)).memory
    states = np.zeros((TOKENS, WIDTH), np.float32)
    without = pipeline.prepare(request(steps=2, image_states=states, video_condition=BESIDE))
    assert (planned.image_encoder, without.memory.image_encoder) == (1001, 0)
    assert planned.before >= 1001
    assert planned.prepared == states.nbytes
    allocated = []
    empty = HostDevice.empty

    def counted(self: HostDevice, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        buffer = empty(self, shape, dtype)
        allocated.append(buffer.nbytes)
        return buffer

    monkeypatch.setattr(HostDevice, "empty", counted)
    without.begin()
    assert sum(allocated) == without.memory.run


RULE_STAGES = WITH_ENCODER.encoder_stages
STATES = np.zeros((TOKENS, WIDTH), np.float32)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({}, "this model starts from an image, and none is given"),
    "states alone": ({"image_states": STATES}, "this model starts from an image, and none is given"),
    "encoded video alone": ({"video_condition": BESIDE}, "only its encoded video is given: give image_states (3, "),
    "another width": ({"images": (PICTURE,), "image_states": STATES[:, 1:]}, "expected (states, width), here (3, "),
    "another number": ({"images": (PICTURE,), "image_states": STATES[1:]}, "image_states have shape (2, "),
    "no square": ({"images": (PICTURE,), "image_square": SQUARE[0, 1:]}, "image_square is an array (3, 4, 3) of uint8"),
    "numbers": ({"images": (PICTURE,), "image_square": SQUARE[0] / 255}, "expected (4, 4, 3) of uint8, 0 to 255 RGB"),
    "infinity": ({"images": (PICTURE,), "image_states": STATES + np.inf}, "contain NaN or infinity"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_runs(case: str, tmp_path: Path) -> None:
    given, message = REFUSED[case]
    pipeline, log = opened(tmp_path / "bundle")
    with pytest.raises(InputError) as caught:
        check(pipeline.bundle, request(steps=2, **given))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not log


def test_a_bundle_without_an_image_encoder_says_how_to_get_one(tmp_path: Path) -> None:
    """It runs with states that are given."""
    pipeline, _ = fake_pipeline(tmp_path / "bundle", {**functions(), **ENGINES}, **attending(manifest(), RULE))
    with pytest.raises(InputError, match=r"no image encoder, .* adacache-export BUNDLE --image-encoder DIR"):
        check(pipeline.bundle, request(steps=2, images=(PICTURE,)))
    pipeline.generate(request(steps=2, images=(PICTURE,), image_states=STATES))


def test_states_for_a_model_that_attends_to_no_image_are_refused(tmp_path: Path) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    with pytest.raises(InputError, match="attends to no states of an image"):
        check(pipeline.bundle, request(image_states=STATES))


def test_an_image_that_is_too_narrow_is_refused() -> None:
    with pytest.raises(InputError, match=r"an image of 5x501 pixels is too narrow .* at most 100 times the other"):
        middle_square(np.zeros((1, 501, 5, 3), np.uint8), 5, 4)
    assert middle_square(np.zeros((1, 5, 500, 3), np.uint8), 5, 4).shape == (1, 4, 4, 3)
