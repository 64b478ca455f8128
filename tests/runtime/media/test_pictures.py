"""Images and clips from files: read as they were written, and brought to size as Open-Sora does it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from adacache_engines.bundle.latent_space import ResizeRule
from adacache_engines.errors import InputError
from adacache_runtime.media.pictures import (
    read_image,
    read_last_frames,
    resize,
    resize_image,
    resize_to_fill,
    stretch,
)
from adacache_runtime.media.video import to_pixels, write_video

SIZES = [(12, 20), (24, 20), (7, 31), (40, 12), (13, 13), (3, 5)]  # (height, width) of what is read
WANTED = [(12, 20), (9, 9), (31, 8)]


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def smooth(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Frames that H.264 hardly changes."""
    rows, columns = np.mgrid[:height, :width]
    planes = [rows * 200 / height, columns * 200 / width, (rows + columns) * 100 / (height + width)]
    picture = np.stack(planes, axis=-1)
    return np.stack([picture + 5 * index for index in range(count)]).astype(np.uint8)


def test_a_png_is_read_as_it_was_written(tmp_path: Path) -> None:
    picture = noise(1, 12, 20)
    write_video(tmp_path / "a.png", picture, fps=24)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture)
    np.testing.assert_array_equal(to_pixels(resize_to_fill(picture, 12, 20)), picture)


def test_the_last_frames_of_a_clip(tmp_path: Path) -> None:
    frames = smooth(7, 32, 48)
    write_video(tmp_path / "a.mp4", frames, fps=24)
    read = read_last_frames(tmp_path / "a.mp4", 3)
    assert read.shape == (3, 32, 48, 3)
    assert np.abs(read.astype(float) - frames[4:]).mean() < 3
    assert np.abs(read.astype(float) - frames[:3]).mean() > 10
    first = read_image(tmp_path / "a.mp4")
    assert np.abs(first.astype(float) - frames[:1]).mean() < 3
    with pytest.raises(InputError, match=r"a\.mp4 has 7 frames; 17 are needed"):
        read_last_frames(tmp_path / "a.mp4", 17)


def test_other_formats_are_read(tmp_path: Path) -> None:
    picture = smooth(1, 16, 24)
    image = Image.fromarray(picture[0])
    for name in ("a.jpg", "a.webp", "a.bmp"):
        image.save(tmp_path / name)
        assert np.abs(read_image(tmp_path / name).astype(float) - picture).mean() < 4
    image.convert("L").save(tmp_path / "grey.png")
    grey = read_image(tmp_path / "grey.png")
    assert grey.shape == picture.shape
    assert np.ptp(grey, axis=-1).max() == 0


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for path in (tmp_path / "text.png", tmp_path / "missing.png", tmp_path):
        with pytest.raises(InputError, match=f"{path.name} cannot be read as an image or a clip"):
            read_image(path)


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("size", [*SIZES, (5, 300), (300, 5)])
def test_an_image_is_what_pillow_makes(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Columns first, which Pillow 13 does not do in all shapes."""
    picture = noise(1, *size)
    (rows, columns), (height, width) = size, wanted
    ratio = max(height / rows, width / columns)
    tall = height / rows > width / columns
    scaled = (height, round(columns * ratio)) if tall else (round(rows * ratio), width)
    narrow = Image.fromarray(picture[0]).resize((scaled[1], rows), Image.Resampling.BICUBIC)
    resized = np.array(narrow.resize(scaled[::-1], Image.Resampling.BICUBIC))
    top, left = round((scaled[0] - height) / 2), round((scaled[1] - width) / 2)
    expected = resized[top : top + height, left : left + width].astype(np.float32).transpose(2, 0, 1)[:, None]
    given = resize_to_fill(picture, height, width)
    assert given.shape == (3, 1, height, width)
    assert given.dtype == np.float32
    np.testing.assert_array_equal(np.round((given + 1) * 127.5), expected)


@pytest.mark.parametrize("rule", ["fill", "stretch"])
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("size", [*SIZES, (5, 300), (300, 5)])
def test_an_image_that_was_resized_is_not_changed_by_another_resize(
    size: tuple[int, int], wanted: tuple[int, int], rule: ResizeRule
) -> None:
    picture = noise(1, *size)
    resized = resize_image(picture, *wanted, rule)
    assert resized.shape == (1, *wanted, 3)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resize(resized, *wanted, rule), resize(picture, *wanted, rule))


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("size", SIZES)
def test_a_clip_is_what_torch_makes(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    frames = noise(2, *size)
    (rows, columns), (height, width) = size, wanted
    tall = height / rows > width / columns
    scaled = (height, round(columns * height / rows)) if tall else (round(rows * width / columns), width)
    clip = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    resized = torch.nn.functional.interpolate(clip, size=scaled, mode="bilinear", align_corners=False)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    expected = (resized[..., top : top + height, left : left + width] - 0.5) / 0.5
    given = resize_to_fill(frames, height, width)
    np.testing.assert_allclose(given, expected.permute(1, 0, 2, 3).numpy(), atol=1e-5)


@pytest.mark.parametrize("wanted", [*WANTED, (40, 60), (9, 50), (30, 200)])
@pytest.mark.parametrize("size", [*SIZES, (120, 31), (31, 120)])
def test_a_stretched_image_is_what_diffusers_makes(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    from diffusers.image_processor import VaeImageProcessor  # here: few tests need it

    picture = noise(1, *size)
    height, width = wanted
    made = VaeImageProcessor(vae_scale_factor=1).preprocess(Image.fromarray(picture[0]), height=height, width=width)
    given = stretch(picture, height, width)[:, 0]
    np.testing.assert_allclose(given, made[0].numpy(), atol=1e-6)
