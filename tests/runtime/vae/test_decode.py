"""Latents to pixels at run time: frame by frame through the decoder, or latents where a bundle has none."""

import io
import shutil
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from adacache_engines.backends import BACKENDS
from adacache_engines.bundle.files import Bundle, open_bundle, read_manifest, sha256_file
from adacache_engines.bundle.latent_space import ChunkRule
from adacache_engines.bundle.manifest import FileEntry, LatentSpace
from adacache_engines.bundle.shape_profiles import shape_profile
from adacache_engines.contract.device import Array, HostBuffer, HostDevice
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import InputError, NonFiniteError, OutOfRangeError
from adacache_engines.tensorrt.backend import TrtBackend
from adacache_engines.tensorrt.build import BuildOptions
from adacache_engines.tensorrt.library import open_library
from adacache_engines.tensorrt.plan_builder import build_plans
from adacache_export.frame_rules import CHUNKS_OF_17
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.commands.progress import frame_progress
from adacache_runtime.commands.run import main as run
from adacache_runtime.media.video import to_pixels, writing_video
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.vae.decode import decode, render, stream
from tests.helpers.gpu.fake_cuda import FakeCuda
from tests.helpers.gpu.fake_tensorrt import WIDE, Module, library, write_plans
from tests.helpers.model.fake_model import WIDTH, fake_pipeline, functions, graph, manifest, request, spec, write_bundle
from tests.helpers.model.fake_vae import DECODER, FACTOR, SPACE
from tests.helpers.model.opened import Opens
from tests.helpers.originals.reference import DATA, arrays

Capture = pytest.CaptureFixture[str]
SCALE = 0.18215


def run_decoder(given: Mapping[str, Array]) -> dict[str, Array]:
    assert len(given["latents"]) == 1
    return {"pixels": given["latents"].repeat(FACTOR, 2).repeat(FACTOR, 3) / 2}


def decoding(folder: Path, space: LatentSpace = SPACE) -> tuple[Pipeline, list[str]]:
    return fake_pipeline(folder, {**functions(), "decoder": run_decoder}, latent=space)


def alone(bundle: Bundle, **changes: object) -> Bundle:
    latent = bundle.manifest.latent.model_copy(update=changes)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"latent": latent}))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


# decoding


def test_each_frame_by_itself(tmp_path: Path) -> None:
    pipeline, log = decoding(tmp_path / "bundle")
    latents = noise(WIDTH, 4, 2, 5)
    frames = list(decode(pipeline.bundle, pipeline.backend, latents))
    assert log == ["decoder"] * 4
    wanted = latents.repeat(FACTOR, 2).repeat(FACTOR, 3) / 2
    np.testing.assert_array_equal(np.concatenate(frames, axis=1), wanted)
    video = render(pipeline.bundle, pipeline.backend, latents)
    np.testing.assert_array_equal(video, to_pixels(wanted))
    assert video.shape == (4, 2 * FACTOR, 5 * FACTOR, 3)


def test_what_a_generation_gives_is_what_is_decoded(tmp_path: Path) -> None:
    pipeline, _ = decoding(tmp_path / "bundle")
    latents = pipeline.generate(request(height=4, width=10)).latents[1]
    assert latents.shape == (WIDTH, 4, 2, 5)
    assert render(pipeline.bundle, pipeline.backend, latents).shape == (4, 4, 10, 3)


def test_pixels_are_taken_as_they_are(tmp_path: Path) -> None:
    pipeline, log = fake_pipeline(tmp_path / "bundle", functions())
    latents = noise(3, 2, 4, 4)
    np.testing.assert_array_equal(render(pipeline.bundle, pipeline.backend, latents), to_pixels(latents))
    assert log == []


def test_no_decoder(tmp_path: Path) -> None:
    pipeline, _ = decoding(tmp_path / "bundle", SPACE.model_copy(update={"decoder": "none", "decoding": ()}))
    with pytest.raises(InputError, match=r"this bundle has no decoder; .*--vae DIR"):
        render(pipeline.bundle, pipeline.backend, noise(WIDTH, 1, 2, 2))


def test_nan_makes_no_video(tmp_path: Path) -> None:
    pipeline, _ = decoding(tmp_path / "bundle")
    latents = noise(WIDTH, 2, 2, 2)
    latents[0, 1, 0, 0] = np.nan
    with pytest.raises(NonFiniteError):
        render(pipeline.bundle, pipeline.backend, latents)


def test_progress_in_about_ten_lines() -> None:
    stream = io.StringIO()
    with frame_progress(20, stream) as step:
        for _ in range(20):
            step()
    assert stream.getvalue().splitlines() == [f"decoded frame {count}/20" for count in range(2, 21, 2)]


@pytest.fixture
def in_a_row(tmp_path: Path) -> tuple[Pipeline, list[str]]:
    """A fake of Open-Sora's decoder: a graph of chunks that stretches by 4, then one of images."""
    over_time = graph(
        "decoder.temporal",
        (spec("latents", 1, WIDTH, "frames", "height", "width"),),
        (spec("stretched", 1, WIDTH, "pixel_frames", "height", "width"),),
    )
    chunks = ChunkRule(frames=17, latents=5, stretch=4, spare="first")
    changes = {"frames": CHUNKS_OF_17, "decoding": (over_time, DECODER), "chunks": chunks, "images": 4}
    engines = {
        **functions(),
        "decoder.temporal": lambda given: {"stretched": given["latents"].repeat(4, 2)},
        "decoder": lambda given: {"pixels": given["latents"].repeat(FACTOR, 2).repeat(FACTOR, 3) / 2},
    }
    return fake_pipeline(tmp_path / "bundle", engines, latent=SPACE.model_copy(update=changes))


def test_a_video_is_never_held_whole(in_a_row: tuple[Pipeline, list[str]]) -> None:
    pipeline, log = in_a_row
    latents = noise(WIDTH, 7, 2, 5)
    parts, seen = decode(pipeline.bundle, pipeline.backend, latents, 22), []
    for part in parts:
        seen.append((part.shape[1], list(log)))
        log.clear()
    image, chunk = "decoder", "decoder.temporal"
    assert seen == [
        (4, [chunk, image]),
        *[(4, [image])] * 3,
        (1, [image]),
        (4, [chunk, image]),
        (1, [image]),
    ]
    assert log == []


@pytest.mark.parametrize("name", ["long.npz", "long.mp4"])
def test_a_long_video_takes_the_memory_of_a_short_one(
    name: str, in_a_row: tuple[Pipeline, list[str]], tmp_path: Path
) -> None:
    pipeline, _ = in_a_row

    def peak(groups: int) -> int:
        latents, frames = noise(WIDTH, 5 * groups, 16, 16), 17 * groups
        tracemalloc.start()
        with writing_video(tmp_path / name, frames, (32, 32), 24) as write:
            for part in stream(pipeline.bundle, pipeline.backend, latents, frames):
                write(part)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)  # what is imported and cached
    grown = peak(40) - peak(2)
    assert grown < 38 * 17 * 32 * 32 * 3 // 4  # of the frames themselves, in bytes


def test_frames_beyond_the_video_are_dropped(in_a_row: tuple[Pipeline, list[str]]) -> None:
    pipeline, _ = in_a_row
    latents = noise(WIDTH, 7, 2, 5)
    stretched = latents.repeat(4, 1).repeat(FACTOR, 2).repeat(FACTOR, 3) / 2
    for frames in range(22, 26):
        kept = [*range(3, 20), *range(28 - (frames - 17), 28)]
        given = render(pipeline.bundle, pipeline.backend, latents, frames)
        np.testing.assert_array_equal(given, to_pixels(stretched[:, kept]))


@pytest.mark.parametrize("tile", [None, 8])
@pytest.mark.parametrize("frames", [1, 17, 22, 25])
def test_the_memory_of_a_decoder_is_planned(
    frames: int, tile: int | None, in_a_row: tuple[Pipeline, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, _ = in_a_row
    allocated: list[int] = []
    empty = HostDevice.empty

    def counted(self: HostDevice, shape: tuple[int, ...], dtype: np.dtype) -> HostBuffer:
        buffer = empty(self, shape, dtype)
        allocated.append(buffer.nbytes)
        return buffer

    whole = request(height=10, width=14, frames=frames, tile=tile, policy=NeverReuse())
    plan = pipeline.prepare(whole).memory
    latents = noise(WIDTH, SPACE.model_copy(update={"frames": CHUNKS_OF_17}).latent_frames(frames), 5, 7)
    monkeypatch.setattr(HostDevice, "empty", counted)
    list(decode(pipeline.bundle, pipeline.backend, latents, frames, tile))
    assert plan.decoder == sum(allocated) > 0


def test_tiles_of_a_bundle(in_a_row: tuple[Pipeline, list[str]]) -> None:
    """A VAE of Open-Sora-Plan's kind decodes one chunk of one tile whole, and several by tiles."""
    pipeline, log = in_a_row
    bundle = alone(pipeline.bundle, tile=8, tiles_chunks=True)  # of 4 latent columns, a step of 3

    def images(latents: np.ndarray, tile: int | None = None) -> int:
        log.clear()
        whole = render(pipeline.bundle, pipeline.backend, latents)
        usual = log.count("decoder")
        log.clear()
        np.testing.assert_allclose(render(bundle, pipeline.backend, latents, tile=tile), whole, atol=1)
        return log.count("decoder") // usual

    assert images(noise(WIDTH, 5, 4, 4)) == 1
    assert images(noise(WIDTH, 6, 4, 4)) == 4
    assert images(noise(WIDTH, 6, 4, 4), tile=8) == 1
    assert images(noise(WIDTH, 5, 4, 5)) == 4


def test_tiles_that_cannot_be(in_a_row: tuple[Pipeline, list[str]]) -> None:
    pipeline, log = in_a_row
    with pytest.raises(OutOfRangeError, match="tiles of 12 pixels are not possible with this model"):
        pipeline.generate(request(height=10, width=14, tile=12))
    assert log == []


# memory and plans


def test_weights_of_the_decoder_are_counted_apart(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    path = bundle.folder / DECODER.path
    path.write_bytes(b"the graph of decoder")
    entry = FileEntry(sha256=sha256_file(path), nbytes=20)
    files = {**bundle.manifest.files, DECODER.path: entry}
    changed = bundle.manifest.model_copy(update={"latent": SPACE, "files": files})
    cuda = FakeCuda(capacity=1 << 24)
    images = {**WIDE["any"], "images": (1, 1, 1)}
    with_decoder = write_plans(replace(bundle, manifest=changed), {"any": images})
    pipeline = Pipeline(with_decoder, TrtBackend(with_decoder, library(Module(cuda)), CudaDevice(api=cuda)))
    plan = pipeline.prepare(request(height=4, width=10, policy=NeverReuse())).memory
    (made,) = with_decoder.manifest.plans.values()
    nbytes = {entry.graph: entry.nbytes for entry in made.plans}
    buffers = 4 * (WIDTH * 2 * 5 + 3 * 4 * 10)  # a frame's latents and pixels
    assert plan.decoder == nbytes.pop("decoder") + buffers > buffers
    assert plan.weights == sum(nbytes.values())
    assert plan.decoder_arena is not None
    assert plan.beside_weights == max(plan.run, plan.decoder + plan.decoder_arena)


def test_a_bundle_without_a_decoder_needs_no_memory_for_one(tmp_path: Path) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    assert pipeline.prepare(request()).memory.decoder == 0
    assert manifest().graphs() == manifest().loop_graphs()


@pytest.mark.slow
def test_a_plan_of_the_decoder(half_latte: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(half_latte, tmp_path / "bundle"))
    profile = shape_profile(read_manifest(folder), "64x64..128x64:5f:1..2")
    plans = build_plans(folder, open_library("tensorrt-rtx"), {"any": profile}, BuildOptions(), workers=1)
    (entry,) = [entry for entry in plans.plans if entry.graph == "decoder"]
    assert (entry.stage, entry.variant) == ("decoder", "full")
    assert folder.joinpath(entry.path).stat().st_size == entry.nbytes
    open_bundle(folder)


# command line


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Options of a short run of the reference Latte: two prompts, five frames of 8 x 8."""
    given = arrays(DATA / "latte" / "inputs.npz")
    text = {"embeddings": given["text"], "mask": given["mask"], "negative": given["text"][::-1]}
    np.savez(tmp_path / "text.npz", **text)
    np.savez(tmp_path / "noise.npz", latents=given["latents"])
    files = ["--text-embeddings", str(tmp_path / "text.npz"), "--latents", str(tmp_path / "noise.npz")]
    return [*files, "--steps", "2"]


def test_a_run_ends_in_videos(
    decoding_folder: Path, vae_folder: Path, inputs: list[str], tmp_path: Path, capsys: Capture
) -> None:
    saved = tmp_path / "latents.npz"
    command = [str(decoding_folder), *inputs, "--save-latents", str(saved)]
    assert run([*command, "-o", str(tmp_path / "clip.npz")]) == 0
    out, error = capsys.readouterr()
    files = [tmp_path / f"clip-{index}.npz" for index in (1, 2)]
    assert out.splitlines() == [str(saved), *map(str, files)]
    assert "decoded frame 10/10" in error
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    for path, latents in zip(files, arrays(saved)["latents"], strict=True):
        with torch.no_grad():
            sample = vae.decode(torch.from_numpy(latents).transpose(0, 1) / SCALE).sample
        frames = arrays(path)["frames"]
        assert frames.shape == (5, 64, 64, 3)
        wanted = to_pixels(sample.transpose(0, 1).numpy())
        assert np.abs(frames.astype(int) - wanted).max() <= 1  # where rounding is a coin's edge
    assert run([*command, "-o", str(tmp_path / "clip.mp4"), "--zoom", "2"]) == 0
    with av.open(str(tmp_path / "clip-2.mp4")) as container:
        assert container.streams.video[0].average_rate == 8  # Latte's
        pictures = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)]
    assert pictures == [(128, 128, 3)] * 5


def test_tiles_of_a_run(decoding_folder: Path, inputs: list[str], tmp_path: Path, capsys: Capture) -> None:
    videos = []
    for index, tile in enumerate(["64", "32"]):
        output = tmp_path / f"{index}.npz"
        assert run([str(decoding_folder), *inputs, "-o", str(output), "--tile", tile]) == 0
        videos.append(arrays(output.with_stem(f"{index}-1"))["frames"].astype(int))
    whole, tiled = videos
    assert tiled.shape == whole.shape == (5, 64, 64, 3)
    assert np.abs(tiled - whole).max() > 0
    assert run([str(decoding_folder), *inputs, "-o", str(tmp_path / "no.npz"), "--tile", "40"]) == 1
    assert "tiles of 40 pixels are not possible with this model; choose a multiple of 32" in capsys.readouterr().err


def test_the_size_of_a_video_is_in_pixels(
    decoding_folder: Path, inputs: list[str], tmp_path: Path, capsys: Capture
) -> None:
    output = ["-o", str(tmp_path / "clip.mp4"), "--zoom", "300"]
    assert run([str(decoding_folder), *inputs, *output]) == 1
    assert "zoom 300 of 64x64 pixels" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["clip.mp4", "clip.npz"])
def test_latents_instead_of_videos(
    name: str, latte_bundle: Callable[[str], Path], inputs: list[str], tmp_path: Path, capsys: Capture
) -> None:
    saved = tmp_path / "latents.npz"
    command = [str(latte_bundle("latte")), *inputs, "-o", str(tmp_path / name)]
    assert run([*command, "--save-latents", str(saved)]) == 0
    out, error = capsys.readouterr()
    files = [tmp_path / f"clip-{index}.npz" for index in (1, 2)]
    assert out.splitlines() == [str(saved), *map(str, files)]
    assert (
        f"this bundle has no decoder, so latents were written to {files[0]}, {files[1]} instead of a video; "
        "to get videos, export the checkpoint with --vae DIR" in error
    )
    whole = arrays(saved)["latents"]
    for index, path in enumerate(files):
        np.testing.assert_array_equal(arrays(path)["latents"], whole[index : index + 1])
    assert not list(tmp_path.glob("*.mp4"))


def test_one_prompt_is_one_file_with_what_to_do(
    decoding_folder: Path, inputs: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(folder: Path) -> Bundle:
        bundle = open_bundle(folder)
        space = bundle.manifest.latent.model_copy(update={"decoder": "none", "decoding": ()})
        return replace(bundle, manifest=bundle.manifest.model_copy(update={"latent": space}))

    monkeypatch.setattr("adacache_runtime.commands.run.open_bundle", opened)
    given = arrays(tmp_path / "text.npz")
    np.savez(tmp_path / "text.npz", **{name: value[:1] for name, value in given.items()})
    np.savez(tmp_path / "noise.npz", latents=arrays(tmp_path / "noise.npz")["latents"][:1])
    assert run([str(decoding_folder), *inputs, "-o", str(tmp_path / "clip.mp4")]) == 0
    out, error = capsys.readouterr()
    assert out.splitlines() == [str(tmp_path / "clip.npz")]
    assert f"latents were written to {tmp_path / 'clip.npz'} instead of a video" in error
    assert "export the checkpoint with --vae DIR" in error
    assert arrays(tmp_path / "clip.npz")["latents"].shape == (1, 4, 5, 8, 8)


CLASHES: dict[str, tuple[list[str], str]] = {
    "one file for two": (
        ["-o", "clip.mp4", "--save-latents", "sub/../clip-2.npz"],
        "are one file; give one of them another name",
    ),
    "a picture of several frames": (["-o", "clip.png"], "a .png holds one frame"),
    "suffix": (["-o", "clip.avi"], "unknown suffix"),
    "a folder in its place": (["-o", "taken.mp4"], "taken-1.npz cannot be written: it is a folder"),
}


@pytest.mark.parametrize("case", CLASHES)
def test_refused_before_the_work(
    case: str,
    latte_bundle: Callable[[str], Path],
    inputs: list[str],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BACKENDS, "onnxruntime", Opens())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "taken-1.npz").mkdir()
    options, message = CLASHES[case]
    assert run([str(latte_bundle("latte")), *inputs, *options]) == 1
    assert message in capsys.readouterr().err
