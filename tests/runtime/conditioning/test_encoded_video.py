"""A model that takes an encoded video beside its latents: what the video is, how it is encoded, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adacache_engines.backends import BACKENDS
from adacache_engines.bundle.manifest import VIDEO_CONDITION
from adacache_engines.contract.device import HostDevice
from adacache_engines.contract.fake import FakeBackend
from adacache_engines.errors import InputError
from adacache_export.frame_rules import EACH_FRAME, FIRST_ALONE_THEN_FOURS
from adacache_runtime.checking import check
from adacache_runtime.commands import run as cli
from adacache_runtime.conditioning.encoded_video import folded, video_condition
from adacache_runtime.events import ImagesEncoded
from adacache_runtime.media.pictures import resize_to_fill
from adacache_runtime.media.video import write_video
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.vae.encode import encode, most_likely
from tests.helpers.model import fake_model, fake_vae
from tests.helpers.model.fake_model import WIDTH, captions, fake_pipeline, functions, manifest, request, write_bundle
from tests.helpers.model.opened import Opens

HEIGHT, ACROSS, FRAMES = 4, 6, 5
STRETCH = FIRST_ALONE_THEN_FOURS.stretch
PICTURE = np.random.default_rng(3).integers(0, 256, (2 * HEIGHT, ACROSS, 3), np.uint8)
Capture = pytest.CaptureFixture[str]


def carrying(folder: Path) -> tuple[Pipeline, list[str]]:
    """Return a model with a VAE that is causal in time, which starts from an image."""
    latent = fake_vae.CARRYING
    changes = fake_model.starting_from_image(manifest().model_copy(update={"latent": latent}))
    return fake_pipeline(folder, fake_vae.CARRYING_ENGINES, latent=latent, **changes)


@pytest.mark.parametrize(
    ("given", "rule", "expected"),
    [
        ([1, 0, 0, 0, 0, 0, 0, 0, 0], FIRST_ALONE_THEN_FOURS, [[1, 0, 0]] * 4),
        ([1, 2, 3, 4, 5], FIRST_ALONE_THEN_FOURS, [[1, 2], [1, 3], [1, 4], [1, 5]]),
        ([1], FIRST_ALONE_THEN_FOURS, [[1]] * 4),
        ([1, 0, 0], EACH_FRAME, [[1, 0, 0]]),
    ],
)
def test_a_mask_of_frames_is_folded_by_latent_frames(given: list[int], rule: Any, expected: list[list[int]]) -> None:
    made = folded(np.array(given, np.float32), rule, rule.latent_frames(len(given)))
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("space", [fake_vae.CHAIN, fake_vae.CARRYING], ids=["images, then chunks", "carrying"])
@pytest.mark.parametrize("frames", [1, 5, 21])
def test_grey_frames_are_encoded_without_being_made(space: Any, frames: int, tmp_path: Path) -> None:
    engines = {**fake_vae.CARRYING_ENGINES, **(fake_vae.ENGINES if space is fake_vae.CHAIN else {})}
    pipeline, _ = fake_pipeline(tmp_path / "bundle", engines, latent=space)
    image = fake_vae.noise(3, 1, 8, 12)
    whole = np.concatenate([image, np.zeros((3, frames - 1, 8, 12), np.float32)], 1)
    made = encode(pipeline.bundle, pipeline.backend, image, most_likely, 8, frames)
    np.testing.assert_array_equal(made, encode(pipeline.bundle, pipeline.backend, whole, most_likely, 8))


def test_the_condition_is_a_mask_and_the_latents_of_image_and_grey(tmp_path: Path) -> None:
    pipeline, log = carrying(tmp_path / "bundle")
    image = fake_vae.noise(3, 1, 8, 12)
    made = video_condition(pipeline.bundle, pipeline.backend, image, 9)
    assert made.shape == (1, STRETCH + WIDTH, 3, 4, 6)
    assert log == ["vae_encoder.first", "vae_encoder", "vae_encoder"]
    np.testing.assert_array_equal(made[0, :STRETCH, 0], 1)
    np.testing.assert_array_equal(made[0, :STRETCH, 1:], 0)
    first = fake_vae.blocks(image)
    np.testing.assert_allclose(made[0, STRETCH:, :1], first, rtol=1e-6)
    np.testing.assert_allclose(made[0, STRETCH:, 1:2], first / 2, rtol=1e-6)  # the frame before has half of its part
    np.testing.assert_array_equal(made[0, STRETCH:, 2:], 0)


def test_all_branches_and_prompts_share_one_condition(tmp_path: Path) -> None:
    """It is encoded once a generation, and the embedding of each call sees it as it was."""
    seen: list[NDArray[np.float32]] = []
    engines = dict(fake_vae.CARRYING_ENGINES)

    def embed(given: Any) -> Any:
        seen.append(given[VIDEO_CONDITION].copy())
        return fake_model.run_embed(given)

    engines["embed"] = embed
    latent = fake_vae.CARRYING
    changes = fake_model.starting_from_image(manifest().model_copy(update={"latent": latent}))
    pipeline, log = fake_pipeline(tmp_path / "bundle", engines, latent=latent, **changes)
    asked = request(height=8, width=12, frames=9, images=(PICTURE,), steps=3)
    prepared = pipeline.prepare(asked)
    events = list(prepared.denoise())
    assert [event for event in events if isinstance(event, ImagesEncoded)] == [ImagesEncoded(1)]
    assert log.count("vae_encoder.first") == 1
    assert log.count("embed") == len(seen) == 3
    pixels = resize_to_fill(PICTURE[None], 8, 12)
    expected = video_condition(pipeline.bundle, pipeline.backend, pixels, 9)
    for condition in seen:
        np.testing.assert_array_equal(condition, expected)
    made = pipeline.generate(asked).latents
    assert made.shape == (2, WIDTH, 3, 4, 6)
    other = pipeline.generate(request(height=8, width=12, frames=9, images=(255 - PICTURE,), steps=3)).latents
    assert not np.array_equal(made, other)


def test_the_condition_may_be_given_as_it_is(tmp_path: Path) -> None:
    pipeline, log = carrying(tmp_path / "bundle")
    size = {"height": 8, "width": 12, "frames": 9, "steps": 3}
    beside = video_condition(pipeline.bundle, pipeline.backend, resize_to_fill(PICTURE[None], 8, 12), 9)[0]
    expected = pipeline.generate(request(**size, images=(PICTURE,))).latents
    log.clear()
    made = pipeline.generate(request(**size, video_condition=beside)).latents
    assert "vae_encoder.first" not in log
    np.testing.assert_array_equal(made, expected)


def test_memory_is_estimated_with_the_encoder_and_the_condition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, _ = carrying(tmp_path / "bundle")
    size = {"height": 8, "width": 12, "frames": 9, "steps": 3}
    asked = request(**size, images=(PICTURE,))
    planned = pipeline.prepare(asked).memory
    beside = np.zeros((STRETCH + WIDTH, 3, 4, 6), np.float32)
    without = pipeline.prepare(request(**size, video_condition=beside)).memory
    assert planned.pixel_encoder > without.pixel_encoder == 0
    assert planned.run == without.run
    allocated = []
    empty = HostDevice.empty

    def counted(self: HostDevice, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        buffer = empty(self, shape, dtype)
        allocated.append(buffer.nbytes)
        return buffer

    prepared = pipeline.prepare(request(**size, video_condition=beside))
    monkeypatch.setattr(HostDevice, "empty", counted)
    prepared.begin()
    assert sum(allocated) == without.run


def test_an_image_alone_is_a_video_of_one_frame(tmp_path: Path) -> None:
    pipeline, _ = carrying(tmp_path / "bundle")
    made = pipeline.generate(request(height=8, width=12, frames=1, images=(PICTURE,), steps=2))
    assert made.latents.shape == (2, WIDTH, 1, 4, 6)


# refusals


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of a model of pixels that starts from an image, without the image."""
    monkeypatch.setitem(BACKENDS, "onnxruntime", Opens(FakeBackend(functions())))
    write_bundle(tmp_path / "fake.adacache", **fake_model.starting_from_image(manifest()))
    write_video(tmp_path / "a.png", PICTURE[None], fps=24)
    np.savez(tmp_path / "text.npz", embeddings=captions().embeddings, mask=captions().mask)
    noise = np.zeros((2, WIDTH, FRAMES, HEIGHT, ACROSS), np.float32)
    beside = np.zeros((1 + WIDTH, FRAMES, HEIGHT, ACROSS), np.float32)
    np.savez(tmp_path / "mask.npz", latents=noise, mask=np.eye(2, FRAMES, dtype=np.float32))
    np.savez(tmp_path / "other.npz", latents=noise[:, :, 1:])
    np.savez(tmp_path / "beside.npz", latents=noise, video_condition=beside)
    np.savez(tmp_path / "short.npz", latents=noise, video_condition=beside[1:])
    np.savez(tmp_path / "infinite.npz", latents=noise, video_condition=beside + np.inf)
    size = ["--size", f"{ACROSS}x{HEIGHT}", "--frames", str(FRAMES), "--steps", "3"]
    files = ["--text-embeddings", str(tmp_path / "text.npz"), "--save-latents", str(tmp_path / "out.npz")]
    return [str(tmp_path / "fake.adacache"), *size, *files]


REFUSED: dict[str, tuple[list[str], str]] = {
    "no image": ([], "this model starts from an image, and none is given: give one with --image FILE"),
    "two images": (["--image", "a.png"] * 2, "starts from one image, which is the first frame"),
    "two places": (["--image", "a.png", "--image-at", "0"] * 2, "starts from one image, which is the first frame"),
    "another frame": (["--image", "a.png", "--image-at", "2"], "starts from one image, which is the first frame"),
    "a clip": (["--image", "a.png", "--video", "a.png"], "starts from one image, which is the first frame"),
    "an edit ratio": (["--image", "a.png", "--edit", "0.5"], "starts from one image, which is the first frame"),
    "loops": (["--image", "a.png", "--loops", "2"], "leave masks, clips and loops out"),
    "a mask": (["--latents", "mask.npz"], "this model starts from an image, and none is given"),
    "other latents": (["--image", "a.png", "--latents", "other.npz"], "ask for the frames and the size of the latents"),
    "two conditions": (["--image", "a.png", "--latents", "beside.npz"], "are both given; give one"),
    "few channels": (["--latents", "short.npz"], "expected (channels, frames, height, width), here (4, 5, 4, 6)"),
    "infinity": (["--latents", "infinite.npz"], "the video condition contains NaN or infinity"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_runs(case: str, command: list[str], tmp_path: Path, capsys: Capture) -> None:
    options, message = REFUSED[case]
    given = [str(tmp_path / option) if option.endswith((".png", ".npz")) else option for option in options]
    assert cli.main([*command, *given]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out.npz").exists()


def test_a_mask_beside_the_image_is_refused(tmp_path: Path) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions(), **fake_model.starting_from_image(manifest()))
    mask, latents = np.zeros((2, 4), np.float32), np.zeros((2, WIDTH, 4, 2, 5), np.float32)
    with pytest.raises(InputError, match="keeps no other frames"):
        check(pipeline.bundle, request(images=(PICTURE,), mask=mask, latents=latents))


def test_a_bundle_without_an_encoder_says_how_to_get_one(command: list[str], tmp_path: Path, capsys: Capture) -> None:
    """It runs with a condition that is given encoded."""
    other = tmp_path / "latent.adacache"
    latent = manifest().latent.model_copy(update={"decoder": "none"})
    write_bundle(other, **fake_model.starting_from_image(manifest()), latent=latent)
    assert cli.main([str(other), *command[1:], "--image", str(tmp_path / "a.png")]) == 1
    assert "no encoder of images and clips: export the checkpoint with --vae DIR" in capsys.readouterr().err
    assert cli.main([str(other), *command[1:], "--latents", str(tmp_path / "beside.npz")]) == 0
    assert (tmp_path / "out.npz").exists()


@pytest.mark.parametrize(
    ("conditioning", "message"),
    [("none", "makes videos from text alone"), ("not-exported", "export the checkpoint again with --conditioning")],
)
def test_an_image_for_a_model_of_text_alone_is_refused(
    conditioning: Any, message: str, command: list[str], tmp_path: Path, capsys: Capture
) -> None:
    other = tmp_path / "text.adacache"
    write_bundle(other, conditioning=conditioning)
    assert cli.main([str(other), *command[1:], "--image", str(tmp_path / "a.png")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert cli.main([str(other), *command[1:], "--latents", str(tmp_path / "beside.npz")]) == 1
    assert "takes no encoded video beside its latents" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()
