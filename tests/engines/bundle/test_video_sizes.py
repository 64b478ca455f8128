"""Sizes and lengths by name: Open-Sora's figures, what each bundle lists, and the options that take them."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adacache_engines.bundle.files import read_manifest
from adacache_engines.bundle.manifest import FrameRule, Manifest
from adacache_engines.bundle.video_sizes import durations_of, possible_frames, possible_names, size_of, usual_aspect
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_export.commands.export import main as export
from adacache_export.families.latte_t2v.transformer import LatteT2VConfig
from adacache_export.families.open_sora.family import OpenSoraConfig
from adacache_export.families.open_sora.sizes import NAMES
from adacache_export.families.registry import FAMILIES
from adacache_export.frame_rules import CHUNKS_OF_17, EACH_FRAME, FIRST_THEN_FOURS
from adacache_runtime.commands.options import add_size, video_size
from adacache_runtime.commands.run import main as run
from adacache_runtime.request import Captions, Request
from adacache_runtime.settled import settle
from tests.helpers.model import fake_model

Capture = pytest.CaptureFixture[str]

# hpcaitech/Open-Sora v1.2.0, opensora/datasets/aspect.py, as width:height and (width, height)
KNOWN = {
    "144p": {"16:9": (256, 144), "9:16": (144, 256), "4:3": (221, 166), "3:4": (165, 221), "1:1": (192, 192)},
    "240p": {"16:9": (426, 240), "9:16": (240, 426), "4:3": (368, 276), "3:4": (278, 370), "1:1": (320, 320)},
    "360p": {"16:9": (640, 360), "9:16": (360, 640), "4:3": (554, 416), "3:4": (416, 554), "1:1": (480, 480)},
    "480p": {"16:9": (854, 480), "9:16": (480, 854), "4:3": (738, 554), "3:4": (555, 740), "25:12": (925, 444)},
    "720p": {"16:9": (1280, 720), "9:16": (720, 1280), "4:3": (1110, 832), "3:4": (832, 1108), "27:50": (666, 1386)},
    "1080p": {"16:9": (1920, 1080), "8:3": (2352, 882), "1:2": (1018, 2036)},
    "2k": {"16:9": (2560, 1440), "8:5": (2428, 1518), "27:50": (1330, 2772)},
    "4k": {"16:9": (3840, 2160), "50:27": (3918, 2118), "9:17": (2096, 3958)},
}
FAKE = fake_model.manifest().model_copy(update={"names": NAMES})


@pytest.mark.parametrize("name", KNOWN)
def test_published_sizes(name: str) -> None:
    for aspect, size in KNOWN[name].items():
        assert size_of(FAKE, name, aspect=aspect) == size
    assert size_of(FAKE, name) == KNOWN[name]["16:9"]


def test_seventeen_aspects_of_about_as_many_pixels() -> None:
    assert list(NAMES.sizes) == list(KNOWN)
    for sizes in NAMES.sizes.values():
        assert len(sizes) == 17
        pixels = sizes["16:9"][0] * sizes["16:9"][1]
        for aspect, (width, height) in sizes.items():
            wide, tall = (100, 208) if aspect == "27:50" else map(int, aspect.split(":"))
            assert width / height == pytest.approx(wide / tall, rel=0.02)
            assert height * width == pytest.approx(pixels, rel=0.02)


def test_plain_sizes_are_width_and_height() -> None:
    usual = FAKE.video
    assert size_of(FAKE, "854x480") == size_of(FAKE, "854X480") == size_of(FAKE, width=854, height=480) == (854, 480)
    assert size_of(FAKE) == (usual.width, usual.height)
    assert size_of(FAKE, width=7) == (7, usual.height)
    assert size_of(FAKE, height=7) == (usual.width, 7)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"size": "500p"}, r"size '500p' is unknown; give WIDTHxHEIGHT .* 144p, 240p, .*4k"),
        ({"size": "480x"}, "size '480x' is unknown"),
        (
            {"size": "480p", "aspect": "16:10"},
            r"aspect '16:10' is not one of 480p; width to height is one of 8:3, .*27:50",
        ),
        ({"size": "854x480", "aspect": "16:9"}, "has an aspect already"),
        ({"size": "480p", "width": 480}, "size 480p has a width and a height already"),
        ({"aspect": "16:9"}, "aspect 16:9 is of a named size"),
    ],
)
def test_sizes_that_are_none(asked: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        size_of(FAKE, **asked)


# what a bundle lists


def listed(family: str, config: object) -> Manifest:
    """Return a manifest with the names that export writes for a family's model."""
    described = FAMILIES[family].describe(config, None)
    names = possible_names(described.names, described.latent, described.profiles)
    parts = {part: getattr(described, part) for part in ("sampler", "video", "latent", "text", "profiles")}
    return fake_model.manifest().model_copy(update={**parts, "names": names})


MODELS = {
    "open-sora-1.2": (OpenSoraConfig(), {"image": 1, "2s": 51, "4s": 102, "8s": 204, "16s": 408}),
    "latte-1": (LatteT2VConfig(), {"image": 1, "2s": 16}),
    "open-sora-plan-1.1": (LatteT2VConfig(video_length=17), {"2.708s": 65}),
}


@pytest.mark.parametrize("family", MODELS)
def test_no_size_is_listed_that_the_model_refuses(family: str, tmp_path: Path) -> None:
    config, durations = MODELS[family]
    manifest = listed(family, config)
    bundle = replace(fake_model.write_bundle(tmp_path / "bundle"), manifest=manifest)
    assert durations_of(manifest) == durations
    given = Captions(np.zeros((1, 1, manifest.text.width), np.float32), np.ones((1, 1), np.bool_))
    for sizes in manifest.names.sizes.values():
        for width, height in sizes.values():
            settle(bundle, Request(captions=given, width=width, height=height))
    for frames in durations.values():
        settle(bundle, Request(captions=given, frames=frames))


def test_what_each_model_lists() -> None:
    """Open-Sora takes 1920 pixels each way: of 2k the square is left, and nothing of 4k. Others have their own."""
    sizes = listed("open-sora-1.2", OpenSoraConfig()).names
    assert list(sizes.sizes) == ["144p", "240p", "360p", "480p", "720p", "1080p", "2k"]
    assert sizes.sizes["2k"] == {"1:1": (1920, 1920)}
    assert usual_aspect(sizes, "2k") == "1:1"
    assert "8:3" not in sizes.sizes["1080p"]
    for family in ("latte-1", "open-sora-plan-1.1"):
        assert listed(family, MODELS[family][0]).names.sizes == {"512p": {"1:1": (512, 512)}}


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
    return plain.model_copy(update={"names": NAMES})


def with_frames(manifest: Manifest, frames: FrameRule, low: int, high: int) -> Manifest:
    latent = manifest.latent.model_copy(update={"frames": frames})
    profiles = {name: {**profile, "frames": (low, high)} for name, profile in manifest.profiles.items()}
    return manifest.model_copy(update={"latent": latent, "profiles": profiles})


DURATIONS = {"image": 1, "2s": 51, "4s": 102, "8s": 204, "16s": 408, "32s": 816, "1x": 51, "2x": 102, "16x": 816}


@pytest.mark.parametrize("duration", DURATIONS)
def test_durations_of_open_sora(duration: str, open_sora: Manifest) -> None:
    assert asked(open_sora, "--size", "480p", "--aspect", "9:16", "--duration", duration) == (
        *(854, 480),
        DURATIONS[duration],
    )
    assert asked(open_sora, "--duration", duration, fps=8)[2] == DURATIONS[duration]


def test_nothing_is_the_default_of_the_bundle(open_sora: Manifest) -> None:
    assert asked(open_sora) == (None, None, None)
    assert asked(open_sora, "--size", "64x36", "--frames", "7") == (36, 64, 7)
    assert asked(open_sora, "--width", "64", "--height", "36", "--frames", "7") == (36, 64, 7)


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
        (["--aspect", "9:16"], "is of a named size: give one of these, too: 144p"),
        (["--frames", "51", "--duration", "2s"], "frames and duration are both given"),
        (["--duration", "3s"], "choose image, 2s, 4s, 8s, 16s, 32s, or give frames"),
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
    """And refuse those of other models, with the names that this one has."""
    (size,) = read_manifest(decoding_folder).names.sizes
    assert export(["--inspect", str(decoding_folder), "--size", "128x64", "--duration", "image"]) == 0
    shown = capsys.readouterr().out
    assert "128x64 pixels, 1 frames" in shown
    assert f"{size} (" in shown
    asked = [str(decoding_folder), "--prompt", "a", "--estimate-memory", "--size"]
    assert run([*asked, size, "--aspect", "1:1"]) == 0
    capsys.readouterr()
    assert run([*asked, "480p"]) == 1
    assert f"size '480p' is unknown; give WIDTHxHEIGHT in pixels, such as 64x64, or one of {size}" in one_line(capsys)
    assert run([*asked, "854x480"]) == 1
    assert "854x480 pixels are not possible with this model; choose multiples of 16" in one_line(capsys)


def one_line(capsys: Capture) -> str:
    return " ".join(capsys.readouterr().err.split())
