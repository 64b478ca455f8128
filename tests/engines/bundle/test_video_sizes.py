"""Sizes and lengths by name: Open-Sora's figures, and the options that take them."""

import argparse
from pathlib import Path

import pytest

from adacache_engines.bundle.files import read_manifest
from adacache_engines.bundle.manifest import FrameRule, Manifest, VideoNames
from adacache_engines.bundle.shape_profiles import possible_frames
from adacache_engines.bundle.video_sizes import ASPECTS, RESOLUTIONS, size_of
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_export.commands.export import main as export
from adacache_export.frame_rules import CHUNKS_OF_17, EACH_FRAME, FIRST_THEN_FOURS
from adacache_runtime.commands.options import add_size, video_size
from adacache_runtime.commands.run import main as run

Capture = pytest.CaptureFixture[str]

# hpcaitech/Open-Sora v1.2.0, opensora/datasets/aspect.py
KNOWN = {
    "144p": {"9:16": (144, 256), "16:9": (256, 144), "3:4": (166, 221), "4:3": (221, 165), "1:1": (192, 192)},
    "240p": {"9:16": (240, 426), "16:9": (426, 240), "3:4": (276, 368), "4:3": (370, 278), "1:1": (320, 320)},
    "360p": {"9:16": (360, 640), "16:9": (640, 360), "3:4": (416, 554), "4:3": (554, 416), "1:1": (480, 480)},
    "480p": {"9:16": (480, 854), "16:9": (854, 480), "3:4": (554, 738), "4:3": (740, 555), "12:25": (444, 925)},
    "720p": {"9:16": (720, 1280), "16:9": (1280, 720), "3:4": (832, 1110), "4:3": (1108, 832), "50:27": (1386, 666)},
    "1080p": {"9:16": (1080, 1920), "3:8": (882, 2352), "2:1": (2036, 1018)},
    "2k": {"9:16": (1440, 2560), "5:8": (1518, 2428), "50:27": (2772, 1330)},
    "4k": {"9:16": (2160, 3840), "27:50": (2118, 3918), "17:9": (3958, 2096)},
}


@pytest.mark.parametrize("name", KNOWN)
def test_published_sizes(name: str) -> None:
    for aspect, size in KNOWN[name].items():
        assert size_of(name, aspect) == size
    assert size_of(name) == KNOWN[name]["9:16"]


def test_seventeen_aspects_of_about_as_many_pixels() -> None:
    assert list(RESOLUTIONS) == list(KNOWN)
    for sizes in RESOLUTIONS.values():
        assert tuple(sizes) == ASPECTS
        assert len(sizes) == 17
        pixels = sizes["9:16"][0] * sizes["9:16"][1]
        for aspect, (height, width) in sizes.items():
            tall, wide = (208, 100) if aspect == "50:27" else map(int, aspect.split(":"))
            assert height / width == pytest.approx(tall / wide, rel=0.02)
            assert height * width == pytest.approx(pixels, rel=0.02)


def test_plain_sizes() -> None:
    assert size_of("480x854") == size_of("480X854") == (480, 854)


@pytest.mark.parametrize(
    ("size", "aspect", "message"),
    [
        ("500p", None, r"size '500p' is unknown; give HxW .* 144p, 240p, .*4k"),
        ("480x", None, "size '480x' is unknown"),
        ("480p", "16:10", r"aspect '16:10' is unknown; height to width is one of 3:8, .*50:27"),
        ("480x854", "9:16", "has an aspect already"),
    ],
)
def test_sizes_that_are_none(size: str, aspect: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        size_of(size, aspect)


# options


def asked(manifest: Manifest, *arguments: str, fps: float | None = None) -> tuple[int | None, int | None, int | None]:
    parser = argparse.ArgumentParser()
    add_size(parser)
    size = video_size(parser.parse_args(arguments), manifest, fps)
    return size["height"], size["width"], size["frames"]


@pytest.fixture(scope="module")
def open_sora(decoding_folder: Path) -> Manifest:
    """A manifest with the latents of Open-Sora."""
    plain = with_frames(read_manifest(decoding_folder), CHUNKS_OF_17, 1, 120)
    return plain.model_copy(update={"names": VideoNames(durations=DURATIONS, only_named_durations=True)})


def with_frames(manifest: Manifest, frames: FrameRule, low: int, high: int) -> Manifest:
    latent = manifest.latent.model_copy(update={"frames": frames})
    profiles = {name: {**profile, "frames": (low, high)} for name, profile in manifest.profiles.items()}
    return manifest.model_copy(update={"latent": latent, "profiles": profiles})


DURATIONS = {"image": 1, "2s": 51, "4s": 102, "8s": 204, "16s": 408, "32s": 816, "1x": 51, "2x": 102, "16x": 816}


@pytest.mark.parametrize("duration", DURATIONS)
def test_durations_of_open_sora(duration: str, open_sora: Manifest) -> None:
    assert asked(open_sora, "--size", "480p", "--aspect", "16:9", "--duration", duration) == (
        *(854, 480),
        DURATIONS[duration],
    )
    assert asked(open_sora, "--duration", duration, fps=8)[2] == DURATIONS[duration]


def test_nothing_is_the_default_of_the_bundle(open_sora: Manifest) -> None:
    assert asked(open_sora) == (None, None, None)
    assert asked(open_sora, "--size", "36x64", "--frames", "7") == (36, 64, 7)


def test_durations_of_others_go_by_their_frames_a_second(decoding_folder: Path) -> None:
    latte = with_frames(read_manifest(decoding_folder), EACH_FRAME, 1, 16)
    assert latte.video.fps == 8
    assert asked(latte, "--duration", "2s")[2] == 16
    assert asked(latte, "--duration", "0.5s")[2] == 4
    assert asked(latte, "--duration", "0.5s", fps=24)[2] == 12
    with pytest.raises(
        OutOfRangeError, match=r"4s has 32 frames at 8 a second; this model makes 1 to 16: 0\.125s to 2s"
    ):
        asked(latte, "--duration", "4s")


def test_durations_of_a_causal_vae(decoding_folder: Path) -> None:
    plan = with_frames(read_manifest(decoding_folder), FIRST_THEN_FOURS, 17, 17)
    frames = possible_frames(plan)
    assert 65 in frames
    assert {plan.latent.latent_frames(count) for count in frames} == {17}
    assert asked(plan, "--duration", "2.7s", fps=24)[2] == 65
    with pytest.raises(OutOfRangeError, match="2s has 48 frames at 24 a second; this model makes"):
        asked(plan, "--duration", "2s", fps=24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--aspect", "9:16"], "give --size, such as 480p, too"),
        (["--frames", "51", "--duration", "2s"], "frames and duration are both given"),
        (["--duration", "3s"], "choose image, 2s, 4s, 8s, 16s, 32s"),
        (["--duration", "long"], "duration 'long' is not one of seconds"),
        (["--duration", "-2s"], "is not one of seconds"),
        (["--duration", "nans"], "is not one of seconds"),
    ],
)
def test_lengths_that_are_none(arguments: list[str], message: str, open_sora: Manifest) -> None:
    options = [argument.replace("-2s", " -2s") for argument in arguments]
    with pytest.raises((InputError, OutOfRangeError), match=message):
        asked(open_sora, *options)


def test_the_commands_take_names(decoding_folder: Path, capsys: Capture) -> None:
    assert export(["--inspect", str(decoding_folder), "--size", "64x128", "--duration", "image"]) == 0
    assert "128x64 pixels, 1 frames" in capsys.readouterr().out
    assert run([str(decoding_folder), "--prompt", "a", "--size", "144p", "--aspect", "1:1", "--plan-memory"]) == 0
    capsys.readouterr()
    assert run([str(decoding_folder), "--prompt", "a", "--size", "480p", "--plan-memory"]) == 1
    assert "480x854 pixels are not possible with this model; choose multiples of 16" in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        run([str(decoding_folder), "--size", "huge"])
    assert wrong.value.code == 2
