import io
import math
import zipfile

import av
import numpy as np
import pytest

from adacache_engines.errors import InputError, NonFiniteError, OutOfRangeError
from adacache_runtime.media.files import writing
from adacache_runtime.media.video import to_pixels, write_video, writing_video


def smooth(count: int, height: int, width: int) -> np.ndarray:
    """Slow colour gradients that drift from frame to frame."""
    y, x = np.mgrid[0:height, 0:width] / 32
    frames = [
        np.stack([np.sin(3 * x + t / 5) / 2 + 0.5, y, np.cos(2 * y + x + t / 7) / 2 + 0.5], -1) for t in range(count)
    ]
    return (np.clip(frames, 0, 1) * 255).astype(np.uint8)


def zoomed(frames: np.ndarray, zoom: int) -> np.ndarray:
    return np.kron(frames, np.ones((1, zoom, zoom, 1), np.uint8))


def decode(path) -> tuple[np.ndarray, float]:
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return frames, float(rate or 0)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.square(one.astype(float) - other).mean())


def test_pixels_are_rounded_and_cut_off_as_in_the_original():
    values = np.array([-7, -1, -1 + 1 / 255, -0.0001, 0, 1 - 1.1 / 255, 1 - 0.9 / 255, 1, 1.5], np.float32)
    latents = np.tile(values, (3, 1, 1, 1))
    pixels = to_pixels(latents)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1, 1, 9, 3)
    # Open-Sora's save_sample: clamp, to [0, 1], times 255, plus a half, floor
    expected = np.floor((np.clip(values, -1, 1) + 1) / 2 * 255 + np.float32(0.5)).clip(0, 255)
    assert pixels[0, 0, :, 0].tolist() == expected.tolist() == [0, 0, 1, 127, 128, 254, 255, 255, 255]


def test_pixels_keep_the_axes_apart():
    latents = np.random.default_rng(0).uniform(-1, 1, (3, 4, 5, 6)).astype(np.float32)
    pixels = to_pixels(latents)
    assert pixels.shape == (4, 5, 6, 3)
    assert pixels[2, 3, 1, 0] == int((latents[0, 2, 3, 1] + 1) / 2 * 255 + 0.5)


@pytest.mark.parametrize("shape", [(4, 2, 8, 8), (2, 8, 8), (1, 3, 2, 8, 8)])
def test_other_latents_are_no_pixels(shape):
    with pytest.raises(InputError, match="decoder"):
        to_pixels(np.zeros(shape, np.float32))


def test_nan_makes_no_video():
    latents = np.zeros((3, 1, 2, 2), np.float32)
    latents[1, 0, 0, 1] = np.nan
    with pytest.raises(NonFiniteError):
        to_pixels(latents)


def test_mp4_shows_what_went_in(tmp_path):
    frames = smooth(12, 32, 32)
    write_video(tmp_path / "out.mp4", frames, 8, zoom=8)
    decoded, fps = decode(tmp_path / "out.mp4")
    assert decoded.shape == (12, 256, 256, 3)
    assert fps == 8
    assert min(psnr(one, other) for one, other in zip(decoded, zoomed(frames, 8), strict=True)) > 30


def test_mp4_plays_everywhere(tmp_path):
    write_video(tmp_path / "out.mp4", smooth(2, 16, 16), 24)
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert "creation_time" not in {**container.metadata, **stream.metadata}


@pytest.mark.parametrize(("height", "width"), [(15, 17), (1, 1), (16, 9)])
def test_odd_sizes_repeat_their_edge(tmp_path, height, width):
    frames = smooth(3, height, width)
    write_video(tmp_path / "out.mp4", frames, 10)
    decoded, _ = decode(tmp_path / "out.mp4")
    assert decoded.shape == (3, height + height % 2, width + width % 2, 3)
    whole = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    assert psnr(decoded, whole) > 26  # chroma has a quarter of the pixels


@pytest.mark.parametrize("fps", [0.5, 7, 23.976, 24, 29.97, 240])
def test_frame_rate(tmp_path, fps):
    write_video(tmp_path / "out.mp4", smooth(5, 16, 16), fps)
    decoded, rate = decode(tmp_path / "out.mp4")
    assert len(decoded) == 5
    assert rate == pytest.approx(fps, rel=1e-5)


@pytest.mark.parametrize("name", ["a.mp4", "a.png", "a.npz"])
def test_same_frames_same_bytes(tmp_path, name):
    frames = smooth(1 if name == "a.png" else 20, 30, 46)  # a size at which x264's defaults vary with the memory layout
    contents, ballast = set(), []
    for size in (1, 1000, 10_000, 33_333):
        ballast.append(np.zeros(size))
        write_video(tmp_path / name, frames.copy(), 8, zoom=3)
        contents.add((tmp_path / name).read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("name", ["a.mp4", "a.npz"])
@pytest.mark.parametrize("parts", [(20,), (1,) * 20, (17, 3), (4, 4, 4, 4, 1, 3)])
def test_parts_give_the_bytes_of_the_whole(tmp_path, name, parts):
    frames = smooth(20, 30, 46)
    write_video(tmp_path / f"whole{name}", frames, 8, zoom=2)
    with writing_video(tmp_path / name, 20, (30, 46), 8, zoom=2) as write:
        for start, count in zip(np.cumsum((0, *parts)), parts, strict=False):
            write(np.asfortranarray(frames[start : start + count]))
    assert (tmp_path / name).read_bytes() == (tmp_path / f"whole{name}").read_bytes()


def test_an_archive_is_what_numpy_writes(tmp_path):
    frames, saved = smooth(3, 8, 9), io.BytesIO()
    write_video(tmp_path / "out.npz", frames, 8)
    np.savez(saved, frames=frames)
    assert (tmp_path / "out.npz").read_bytes() == saved.getvalue()


@pytest.mark.parametrize("name", ["a.mp4", "a.npz"])
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([smooth(2, 8, 8)], "2 frames came; expected 3"),
        ([smooth(2, 8, 8)] * 2, "4 so far; expected 3"),
        ([smooth(3, 8, 10)], r"frames \(3, 8, 10\)"),
        ([smooth(3, 8, 8).astype(float)], "expected uint8"),
        ([], "0 frames came"),
    ],
)
def test_other_frames_than_were_said(tmp_path, name, parts, message):
    with (
        pytest.raises(InputError, match=message),
        writing_video(tmp_path / name, 3, (8, 8), 8) as write,
    ):
        for part in parts:
            write(part)
    assert not list(tmp_path.iterdir())


def test_one_frame(tmp_path):
    frame = smooth(1, 15, 16)
    write_video(tmp_path / "out.PNG", frame, 24, zoom=3)
    write_video(tmp_path / "out.mp4", frame, 24)
    assert (decode(tmp_path / "out.PNG")[0] == zoomed(frame, 3)).all()
    assert len(decode(tmp_path / "out.mp4")[0]) == 1


def test_npz_has_the_frames_themselves(tmp_path):
    frames = smooth(4, 7, 5)
    write_video(tmp_path / "out.npz", frames, 24, zoom=8)
    with np.load(tmp_path / "out.npz") as saved:
        assert saved.files == ["frames"]
        assert (saved["frames"] == frames).all()


def test_transposed_memory_is_fine(tmp_path):
    frames = smooth(2, 16, 32)
    write_video(tmp_path / "a.mp4", frames, 8)
    write_video(tmp_path / "b.mp4", np.asfortranarray(frames), 8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("fps", [0, -1, 240.5, math.nan, math.inf, 1e-9])
def test_impossible_frame_rate(tmp_path, fps):
    with pytest.raises(OutOfRangeError, match="frames per second"):
        write_video(tmp_path / "out.mp4", smooth(2, 16, 16), fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("zoom", [0, -2, 2000])
def test_impossible_zoom(tmp_path, zoom):
    with pytest.raises(OutOfRangeError, match="zoom"):
        write_video(tmp_path / "out.mp4", smooth(2, 16, 16), 8, zoom)


def test_impossible_names(tmp_path):
    frames = smooth(2, 16, 16)
    with pytest.raises(InputError, match=r"\.mp4, \.png, \.npz"):
        write_video(tmp_path / "out.avi", frames, 8)
    with pytest.raises(InputError, match=r"one frame, not 2"):
        write_video(tmp_path / "out.png", frames, 8)
    with pytest.raises(InputError, match=r"no folder .*missing"):
        write_video(tmp_path / "missing" / "out.mp4", frames, 8)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        write_video(tmp_path / "folder.mp4", frames, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.mp4"]


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)]
)
def test_impossible_frames(tmp_path, frames):
    with pytest.raises(InputError, match="expected uint8"):
        write_video(tmp_path / "out.mp4", frames, 8)


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("codec")]
)
def test_a_failure_leaves_the_folder_as_it_was(tmp_path, failure):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"the last good one")
    expected = InputError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected), writing(path) as file:
        file.write(b"half of")
        raise failure
    assert path.read_bytes() == b"the last good one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(InputError, match=r"out\.npz cannot be written: No space left"):
        write_video(tmp_path / "out.npz", smooth(2, 16, 16), 8)
    assert not list(tmp_path.iterdir())


def test_npz_is_a_plain_archive(tmp_path):
    write_video(tmp_path / "out.npz", smooth(1, 4, 4), 8)
    with zipfile.ZipFile(io.BytesIO((tmp_path / "out.npz").read_bytes())) as archive:
        assert {info.date_time[0] for info in archive.infolist()} == {1980}  # not today: the same bytes tomorrow
