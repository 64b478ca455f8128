"""Runs with Open-Sora's VAE, from a prompt's embeddings, pictures and clips to a file."""

from pathlib import Path

import av
import numpy as np
import pytest

from adacache_engines.bundle.files import open_bundle, read_manifest
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.commands.export import main as export
from adacache_runtime.commands.run import main as run
from adacache_runtime.media.pictures import read_image, read_last_frames, resize_to_fill
from adacache_runtime.media.video import write_video
from adacache_runtime.vae.decode import render
from adacache_runtime.vae.encode import drawn, encode
from tests.helpers.originals.reference import OPEN_SORA, arrays
from tests.helpers.tiny_models.exporting import convert_quietly
from tests.helpers.tiny_models.vae_bundle import build_vae_plans, write_open_sora_vae


@pytest.fixture(scope="module")
def exported_whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_open_sora_vae(folder / "vae", levels=4)
    convert_quietly(checkpoint, folder / "bundle", vae=folder / "vae", conditioning=True)
    return folder / "bundle"


@pytest.mark.slow
def test_a_run_ends_in_a_video(exported_whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = arrays(OPEN_SORA / "inputs_A.npz")
    np.savez(tmp_path / "text.npz", embeddings=inputs["y"][:1, 0], mask=inputs["mask"][:1])
    saved, clip, picture = tmp_path / "latents.npz", tmp_path / "clip.mp4", tmp_path / "picture.png"
    command = [str(exported_whole), "--text-embeddings", str(tmp_path / "text.npz"), "--size", "80x48", "--steps", "2"]
    assert run([*command, "--frames", "19", "--save-latents", str(saved), "-o", str(clip)]) == 0
    assert "decoded frame 19/19" in capsys.readouterr().err
    with av.open(str(clip)) as container:
        assert container.streams.video[0].average_rate == 24
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert shown.shape == (19, 48, 80, 3)
    latents = arrays(saved)["latents"]
    assert latents.shape == (1, 4, 6, 6, 10)
    bundle = open_bundle(exported_whole)
    pixels = render(bundle, OrtBackend(exported_whole), latents[0], 19)
    assert run([*command, "--frames", "19", "-o", str(tmp_path / "clip.npz")]) == 0
    np.testing.assert_array_equal(arrays(tmp_path / "clip.npz")["frames"], pixels)
    assert run([*command, "--frames", "1", "-o", str(picture)]) == 0
    with av.open(str(picture)) as container:
        assert [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)] == [(48, 80, 3)]


@pytest.mark.slow
def test_a_run_starts_from_a_picture_and_a_clip(exported_whole: Path, tmp_path: Path) -> None:
    """They come back as the encoder has them, clips in a row are one video, and the same command gives the same."""
    inputs = arrays(OPEN_SORA / "inputs_A.npz")
    np.savez(tmp_path / "text.npz", embeddings=inputs["y"][:1, 0], mask=inputs["mask"][:1])
    shown = np.random.default_rng(0).integers(0, 256, (20, 60, 90, 3), np.uint8)
    write_video(tmp_path / "clip.mp4", shown, 24)
    write_video(tmp_path / "picture.png", shown[:1], 24)
    command = [str(exported_whole), "--text-embeddings", str(tmp_path / "text.npz"), "--size", "80x48", "--steps", "2"]
    command += ["--frames", "51", "--video", str(tmp_path / "clip.mp4"), "--image", str(tmp_path / "picture.png")]
    command += ["--image-at", "34", "--loops", "2", "--save-latents", str(tmp_path / "latents.npz")]
    assert run([*command, "-o", str(tmp_path / "video.npz")]) == 0
    latents, frames = arrays(tmp_path / "latents.npz")["latents"], arrays(tmp_path / "video.npz")["frames"]
    assert latents.shape == (1, 4, 15 + 10, 6, 10)
    assert frames.shape == (51 + 34, 48, 80, 3)
    bundle, noise = open_bundle(exported_whole), drawn(0)
    given = (
        resize_to_fill(read_last_frames(tmp_path / "clip.mp4", 17), 48, 80),
        resize_to_fill(read_image(tmp_path / "picture.png"), 48, 80),
    )
    clip, picture = (encode(bundle, OrtBackend(exported_whole), pixels, noise) for pixels in given)
    np.testing.assert_array_equal(latents[0, :, :5], clip)
    np.testing.assert_array_equal(latents[0, :, 10:11], picture)
    assert run([*command, "-o", str(tmp_path / "again.npz")]) == 0
    np.testing.assert_array_equal(arrays(tmp_path / "again.npz")["frames"], frames)


@pytest.mark.slow
def test_inspect_and_verify(exported_whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(["--inspect", str(exported_whole)]) == 0
    assert "open-sora-vae" in capsys.readouterr().out
    assert export(["--verify", str(exported_whole)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("decoder.temporal", "decoder.spatial", "vae_encoder.spatial"))


@pytest.mark.slow
def test_plans_of_the_vae(exported_whole: Path, tmp_path: Path) -> None:
    names = {graph.name for graph in read_manifest(exported_whole).vae_graphs()}
    assert names <= build_vae_plans(exported_whole, tmp_path, "64x64..128x96:17f..34f")
