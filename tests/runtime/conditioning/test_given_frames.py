"""A video that starts from an image or a clip, from the command line, on a model of pixels in numpy."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from adacache_engines.backends import BACKENDS
from adacache_engines.contract.fake import FakeBackend
from adacache_export.frame_rules import CHUNKS_OF_17
from adacache_runtime.commands import run as cli
from adacache_runtime.media.pictures import read_last_frames, resize_to_fill
from adacache_runtime.media.video import write_video
from tests.helpers.model import fake_model
from tests.helpers.model.fake_model import WIDTH, captions, functions, manifest, write_bundle
from tests.helpers.model.opened import Opens
from tests.helpers.originals.reference import arrays

HEIGHT, ACROSS, FRAMES = 4, 6, 8
CONTINUED = 5  # latent frames of a clip that the next one begins with
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(BACKENDS, "onnxruntime", Opens(FakeBackend(functions())))
    folder = tmp_path / "fake.adacache"
    write_bundle(folder, **fake_model.conditioned(manifest()))
    return folder


@pytest.fixture
def command(bundle: Path, tmp_path: Path) -> list[str]:
    """A run without anything that it starts from."""
    np.savez(tmp_path / "text.npz", embeddings=captions().embeddings, mask=captions().mask)
    size = ["--size", f"{ACROSS}x{HEIGHT}", "--frames", str(FRAMES), "--steps", "3"]
    files = ["--text-embeddings", str(tmp_path / "text.npz"), "--save-latents", str(tmp_path / "out.npz")]
    return [str(bundle), *size, *files]


def latents(tmp_path: Path) -> NDArray[np.float32]:
    """Return the latents of the last run."""
    made: NDArray[np.float32] = arrays(tmp_path / "out.npz")["latents"]
    return made


def picture(tmp_path: Path, name: str, height: int = HEIGHT, width: int = ACROSS) -> tuple[Path, NDArray[np.uint8]]:
    pixels = np.random.default_rng(len(name)).integers(0, 256, (1, height, width, 3), np.uint8)
    write_video(tmp_path / name, pixels, fps=24)
    return tmp_path / name, pixels


def clip(tmp_path: Path, count: int = 9) -> Path:
    frames = np.random.default_rng(0).integers(0, 256, (count, 2 * HEIGHT, 2 * ACROSS, 3), np.uint8)
    write_video(tmp_path / "clip.mp4", frames, fps=24)
    return tmp_path / "clip.mp4"


def test_images_are_frames_of_the_video(command: list[str], tmp_path: Path, capsys: Capture) -> None:
    (first, small), (last, large) = picture(tmp_path, "a.png"), picture(tmp_path, "bc.png", 3 * HEIGHT, 2 * ACROSS)
    given = ["--image", str(first), "--image-at", "0", "--image", str(last), "--image-at", "-1"]
    assert cli.main([*command, *given]) == 0
    made = latents(tmp_path)
    assert made.shape == (2, WIDTH, FRAMES, HEIGHT, ACROSS)
    for sample in made:
        np.testing.assert_array_equal(sample[:, :1], resize_to_fill(small, HEIGHT, ACROSS))
        np.testing.assert_array_equal(sample[:, -1:], resize_to_fill(large, HEIGHT, ACROSS))
    assert "nearest" not in capsys.readouterr().err
    assert cli.main([*command, "--image", str(first)]) == 0
    alone = latents(tmp_path)
    np.testing.assert_array_equal(alone[0, :, :1], resize_to_fill(small, HEIGHT, ACROSS))
    assert not np.array_equal(alone[:, :, -1], made[:, :, -1])


def test_a_picture_comes_out_as_it_went_in(command: list[str], tmp_path: Path) -> None:
    path, pixels = picture(tmp_path, "a.png")
    assert cli.main([*command, "--image", str(path), "--image-at", "2", "-o", str(tmp_path / "v.npz")]) == 0
    for index in (1, 2):
        np.testing.assert_array_equal(arrays(tmp_path / f"v-{index}.npz")["frames"][2:3], pixels)


def test_a_clip_is_continued(command: list[str], tmp_path: Path) -> None:
    path = clip(tmp_path)
    assert cli.main([*command, "--video", str(path)]) == 0
    expected = resize_to_fill(read_last_frames(path, CONTINUED), HEIGHT, ACROSS)
    np.testing.assert_array_equal(latents(tmp_path)[1, :, :CONTINUED], expected)


def test_what_is_edited_changes(command: list[str], tmp_path: Path) -> None:
    path, pixels = picture(tmp_path, "a.png")
    far = []
    for ratio in ("0", "0.4", "0.9"):
        assert cli.main([*command, "--image", str(path), "--edit", ratio]) == 0
        far.append(float(np.abs(latents(tmp_path)[:, :, :1] - resize_to_fill(pixels, HEIGHT, ACROSS)).mean()))
    assert far[0] == 0
    assert min(far[1:]) > 0.1


def test_loops_are_one_video(command: list[str], tmp_path: Path, capsys: Capture) -> None:
    path, pixels = picture(tmp_path, "a.png")
    more = ["--image", str(path), "--trace", str(tmp_path / "t.json"), "-o", str(tmp_path / "v.mp4"), "--zoom", "4"]
    assert cli.main([*command, *more, "--seed", "5"]) == 0
    alone = latents(tmp_path)
    capsys.readouterr()
    assert cli.main([*command, *more, "--seed", "5", "--loops", "3"]) == 0
    shown = capsys.readouterr()
    made = latents(tmp_path)
    assert made.shape[2] == FRAMES + 2 * (FRAMES - CONTINUED)
    np.testing.assert_array_equal(made[:, :, :FRAMES], alone)
    np.testing.assert_array_equal(made[0, :, :1], resize_to_fill(pixels, HEIGHT, ACROSS))
    assert "step 9/9" in shown.err
    assert len(read_last_frames(tmp_path / "v-1.mp4", made.shape[2])) == made.shape[2]
    assert len(np.unique(np.abs(np.diff(made, axis=2)).mean((0, 1, 3, 4)))) == made.shape[2] - 1


def test_a_mask_of_booleans(command: list[str], tmp_path: Path) -> None:
    """And latents from a file, with what the sampler would draw."""
    given = np.random.default_rng(1).standard_normal((2, WIDTH, FRAMES, HEIGHT, ACROSS), np.float32)
    mask = np.random.default_rng(2).random((2, FRAMES)) < 0.5
    np.savez(tmp_path / "in.npz", latents=given, mask=mask, noise=np.zeros((3, *given.shape), np.float32))
    assert cli.main([*command, "--latents", str(tmp_path / "in.npz")]) == 0
    kept = (latents(tmp_path) == given).all((1, 3, 4))
    np.testing.assert_array_equal(kept, ~mask)


REFUSED: dict[str, tuple[list[str], str]] = {
    "missing": (["--image", "nowhere.png"], "nowhere.png cannot be read as an image or a clip"),
    "short clip": (["--video", "CLIP"], "clip.mp4 has 3 frames; 5 are needed to continue it"),
    "no such frame": (["--image", "a.png", "--image-at", "8"], "the video has no frame 8; it has 8"),
    "twice": (["--image", "a.png", "--image-at", "1"] * 2, "fall on latent frame 1"),
    "image in clip": (["--video", "LONG", "--image", "a.png", "--image-at", "4"], "fall on latent frame 4"),
    "places": (["--image", "a.png", "--image", "a.png", "--image-at", "1"], "there are 2 images and 1 frames for them"),
    "only places": (["--image-at", "1"], "there are 0 images and 1 frames for them"),
    "ratio": (["--image", "a.png", "--edit", "1"], "edit ratio 1.0 is not possible; choose 0 or more, below 1"),
    "all given": (["--video", "LONG", "--frames", "4"], "all 4 latent frames would be given"),
    "only an image": (["--image", "a.png", "--frames", "1"], "all 1 latent frames would be given"),
    "no loops": (["--loops", "0"], "0 loops are not possible"),
    "short loops": (["--loops", "2", "--frames", "5"], "clips of 5 latent frames cannot continue one another"),
    "a mask, too": (["--image", "a.png", "--latents", "MASK"], "mask in --latents says already"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_runs(case: str, command: list[str], tmp_path: Path, capsys: Capture) -> None:
    options, message = REFUSED[case]
    path, _ = picture(tmp_path, "a.png")
    noise = np.zeros((2, WIDTH, FRAMES, HEIGHT, ACROSS), np.float32)
    np.savez(tmp_path / "mask.npz", latents=noise, mask=np.eye(2, FRAMES, dtype=np.float32))
    count = 3 if "CLIP" in options else 9
    files = {"a.png": str(path), "CLIP": str(clip(tmp_path, count)), "LONG": str(tmp_path / "clip.mp4")}
    files["MASK"] = str(tmp_path / "mask.npz")
    assert cli.main([*command, *(files.get(option, option) for option in options)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("option", ["--image", "--video", "--loops"])
def test_a_bundle_without_conditioning_says_how_to_add_it(
    option: str, bundle: Path, command: list[str], tmp_path: Path, capsys: Capture
) -> None:
    other = tmp_path / "other.adacache"
    write_bundle(other)
    values = {"--image": str(picture(tmp_path, "a.png")[0]), "--video": str(clip(tmp_path)), "--loops": "2"}
    assert bundle != other
    assert cli.main([str(other), *command[1:], option, values[option]]) == 1
    assert "export the checkpoint again with --conditioning" in capsys.readouterr().err


def test_a_bundle_without_an_encoder(command: list[str], tmp_path: Path, capsys: Capture) -> None:
    """Which loops do without, and what else is missing is told first."""
    other = tmp_path / "latent.adacache"
    latent = manifest().latent.model_copy(update={"decoder": "none"})
    write_bundle(other, **fake_model.conditioned(manifest()), latent=latent)
    path, _ = picture(tmp_path, "a.png")
    assert cli.main([str(other), *command[1:], "--image", str(path)]) == 1
    assert "no encoder of images and clips: export the checkpoint with --vae DIR" in capsys.readouterr().err
    assert cli.main([str(other), *command[1:], "--loops", "2"]) == 0
    assert latents(tmp_path).shape[2] == 2 * FRAMES - CONTINUED


def test_groups_of_17_frames(command: list[str], tmp_path: Path, capsys: Capture) -> None:
    """As of Open-Sora's VAE: an image lands where a group begins, and the user is told where that is."""
    other = tmp_path / "groups.adacache"
    changes = fake_model.conditioned(manifest())
    latent = manifest().latent.model_copy(update={"frames": CHUNKS_OF_17})
    profiles = {"default": {**manifest().profiles["default"], "frames": (1, 15)}}
    write_bundle(other, **changes, latent=latent, profiles=profiles)
    path, pixels = picture(tmp_path, "a.png")
    run = [str(other), *command[1:], "--frames", "51", "--image", str(path)]
    assert cli.main([*run, "--image-at", "-1"]) == 0
    assert "a.png: at frame 34, the nearest to -1 where 17 frames begin" in capsys.readouterr().err
    np.testing.assert_array_equal(latents(tmp_path)[0, :, 10:11], resize_to_fill(pixels, HEIGHT, ACROSS))
    assert cli.main([*run, "--image-at", "17"]) == 0
    assert "the nearest" not in capsys.readouterr().err
    np.testing.assert_array_equal(latents(tmp_path)[0, :, 5:6], resize_to_fill(pixels, HEIGHT, ACROSS))
    assert cli.main([*run, "--image-at", "0", "--image", str(path), "--image-at", "3"]) == 1
    assert "fall on latent frame 0" in capsys.readouterr().err
