"""The decoder and the encoder of pixels on a GPU take what was planned, activations included, or are refused before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.backends import BACKENDS
from adacache_engines.bundle.files import MANIFEST, Bundle, dump_manifest, sha256_file
from adacache_engines.bundle.manifest import FileEntry
from adacache_engines.contract.fake import FakeBackend
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_engines.tensorrt.backend import TrtBackend
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.commands import run as cli
from adacache_runtime.media.video import write_video
from adacache_runtime.memory.estimate import encoder_memory
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.vae.decode import decode
from adacache_runtime.vae.encode import drawn, encode
from tests.helpers.gpu.fake_cuda import FakeCuda
from tests.helpers.gpu.fake_tensorrt import SCRATCH, WIDE, Module, Ranges, library, write_plans
from tests.helpers.model import fake_model
from tests.helpers.model.fake_model import captions, manifest, request, write_bundle
from tests.helpers.model.fake_vae import CHAIN, DECODER, ENGINES, IMAGES, OVER_TIME, noise
from tests.helpers.model.opened import Opens

STRETCH = fake_model.graph(
    "decoder.temporal",
    (fake_model.spec("latents", 1, fake_model.WIDTH, "frames", "height", "width"),),
    (fake_model.spec("stretched", 1, fake_model.WIDTH, "pixel_frames", "height", "width"),),
)
SPACE = CHAIN.model_copy(update={"decoding": (STRETCH, DECODER)})
CODERS = {
    **ENGINES,
    "decoder.temporal": lambda given: {"stretched": given["latents"].repeat(4, 2)},
    "decoder": lambda given: {"pixels": given["latents"].repeat(2, 2).repeat(2, 3) / 2},
}
AXES = ("images", "pixel_frames", "pixel_height", "pixel_width")
RANGES: Ranges = {**WIDE["any"], **dict.fromkeys(AXES, (1, 4, 128)), "tokens": (1, 16, 400)}
GREY = np.full((24, 28, 3), 128, np.uint8)
Capture = pytest.CaptureFixture[str]


def coding_bundle(folder: Path, **latent: object) -> Bundle:
    """With a decoder and an encoder, and a model that may keep frames; ``latent`` are changes of its latent space."""
    space = SPACE.model_copy(update=latent)
    profiles = {"default": {**manifest().profiles["default"], **dict.fromkeys(("frames", "height", "width"), (1, 15))}}
    bundle = write_bundle(folder, **fake_model.conditioned(manifest()), latent=space, profiles=profiles)
    files = dict(bundle.manifest.files)
    for graph in bundle.manifest.vae_graphs():
        path = folder / graph.path
        path.write_bytes(f"the graph of {graph.name}".encode())
        files[graph.path] = FileEntry(sha256=sha256_file(path), nbytes=path.stat().st_size)
    whole = bundle.manifest.model_copy(update={"files": files, "part_weights": {"vae": bundle.manifest.weights}})
    (folder / MANIFEST).write_text(dump_manifest(whole))
    return Bundle(folder, whole)


def trt_pipeline(
    folder: Path, cuda: FakeCuda, largest: int = 128, scratch: int = SCRATCH, **latent: object
) -> Pipeline:
    """On plans of a VAE that takes so many latent rows and columns at most, and so much memory, where it makes or
    takes pixels.
    """
    bundle = coding_bundle(folder, **latent)
    ranges = {**RANGES, **dict.fromkeys(("height", "width"), (1, 4, largest))}
    ranges |= dict.fromkeys(("pixel_height", "pixel_width"), (2, 8, 2 * largest))
    outer: dict[str, Any] = {"factor": 2, "profiles": [ranges], "scratch": scratch}
    inner: dict[str, Any] = {"stretch": 4}
    changes = {DECODER.name: outer, IMAGES.name: outer, STRETCH.name: inner, OVER_TIME.name: inner}
    bundle = write_plans(bundle, {"any": RANGES}, **changes)
    return Pipeline(bundle, TrtBackend(bundle, library(Module(cuda, functions=CODERS)), CudaDevice(api=cuda)))


def plan_nbytes(pipeline: Pipeline, *names: str) -> int:
    (plans,) = pipeline.bundle.manifest.plans.values()
    return sum(entry.nbytes for entry in plans.plans if entry.graph in names)


@pytest.mark.parametrize("tile", [None, 8])
@pytest.mark.parametrize("frames", [17, 22, 1])
def test_a_decoder_takes_what_was_planned(tmp_path: Path, frames: int, tile: int | None) -> None:
    cuda = FakeCuda(capacity=1 << 24)
    pipeline = trt_pipeline(tmp_path / "bundle", cuda)
    asked = request(height=18, width=26, frames=frames, tile=tile, policy=NeverReuse())
    plan = pipeline.prepare(asked).memory
    pipeline.backend.device.synchronize()
    assert cuda.blocks == {}
    assert plan.pixel_encoder == plan.pixel_encoder_arena == 0
    latents = noise(3, SPACE.latent_frames(frames), 9, 13)
    made = np.concatenate(list(decode(pipeline.bundle, pipeline.backend, latents, frames, tile)), axis=1)
    host = FakeBackend(CODERS)
    np.testing.assert_allclose(
        made, np.concatenate(list(decode(pipeline.bundle, host, latents, frames)), axis=1), rtol=0, atol=1e-6
    )
    assert plan.decoder_arena
    weights = plan_nbytes(pipeline, "decoder", "decoder.temporal")
    assert cuda.peak_nbytes == plan.decoder - weights + plan.decoder_arena
    assert plan.beside_weights == max(plan.run, plan.decoder + plan.decoder_arena)
    assert cuda.faults == []


@pytest.mark.parametrize("tile", [None, 8])
@pytest.mark.parametrize("frames", [17, 22, 1])
def test_an_encoder_takes_what_was_planned(tmp_path: Path, frames: int, tile: int | None) -> None:
    cuda = FakeCuda(capacity=1 << 24)
    pipeline = trt_pipeline(tmp_path / "bundle", cuda, encoding=(IMAGES,))
    pixels = noise(3, frames, 19, 26)
    estimate = encoder_memory(pipeline.bundle, pipeline.backend, [pixels.shape], tile, {})
    pipeline.backend.device.synchronize()
    assert cuda.blocks == {}
    encode(pipeline.bundle, pipeline.backend, pixels, drawn(0), tile)
    assert estimate.arena
    assert cuda.peak_nbytes == estimate.held - plan_nbytes(pipeline, IMAGES.name) + estimate.arena
    assert cuda.faults == []


def test_engines_are_asked_once(tmp_path: Path) -> None:
    pipeline = trt_pipeline(tmp_path / "bundle", FakeCuda(capacity=1 << 24))
    asked = request(height=20, width=26, frames=22, images=(GREY,))
    opened = pipeline.backend._library.api.opened
    first = pipeline.prepare(asked).memory
    assert first.pixel_encoder > 0
    loaded = len(opened)
    assert pipeline.prepare(asked).memory == first
    assert len(opened) == loaded


# what does not fit


def test_a_decoder_that_does_not_fit_is_refused_before_the_run(tmp_path: Path) -> None:
    """For its activations alone, and with the tiles that help."""
    cuda = FakeCuda(capacity=1 << 28)
    pipeline = trt_pipeline(tmp_path / "bundle", cuda, scratch=400)
    asked = request(height=20, width=26, frames=22, policy=NeverReuse())
    plan = pipeline.prepare(asked).memory
    assert plan.decoder_arena
    assert plan.decoder < plan.run < plan.decoder + plan.decoder_arena == plan.beside_weights
    cuda.capacity = plan.beside_weights - 1
    with pytest.raises(InputError, match=r"activations of the decoder .* it would fit with ") as caught:
        pipeline.generate(asked)
    assert f"takes {plan.beside_weights / 1e6:.1f} MB" in str(caught.value)
    assert cuda.kernels == []
    cuda.capacity += 1
    pipeline.generate(asked)


def test_what_does_not_fit_is_not_loaded_to_be_asked(tmp_path: Path) -> None:
    cuda = FakeCuda(capacity=1 << 28)
    pipeline = trt_pipeline(tmp_path / "bundle", cuda)
    cuda.capacity = plan_nbytes(pipeline, "decoder", "decoder.temporal") - 1
    opened = len(pipeline.backend._library.api.opened)
    plan = pipeline.prepare(request(height=20, width=26, frames=22)).memory
    assert len(pipeline.backend._library.api.opened) == opened
    assert plan.beside_weights > cuda.capacity


def test_an_encoder_that_does_not_fit_is_refused_before_the_run(tmp_path: Path) -> None:
    """By its activations, with the tiles that help; nothing is encoded then."""
    cuda = FakeCuda(capacity=1 << 28)
    pipeline = trt_pipeline(tmp_path / "bundle", cuda, decoding=(), encoding=(IMAGES,), decoder="none", scratch=400)
    asked = request(height=20, width=26, frames=22, policy=NeverReuse(), images=(GREY,))
    memory = pipeline.prepare(asked).memory
    assert memory.pixel_encoder_arena
    assert memory.run < memory.pixel_encoder + memory.pixel_encoder_arena == memory.beside_weights
    cuda.capacity = memory.beside_weights - 1
    with pytest.raises(InputError, match=r"activations of the encoder of pixels .* fit"):
        pipeline.generate(asked)
    assert cuda.kernels == []


def test_tiles_that_no_plan_takes(tmp_path: Path) -> None:
    """Plans are built for the tiles of the bundle."""
    pipeline = trt_pipeline(tmp_path / "bundle", FakeCuda(capacity=1 << 28), largest=8, tile=16)
    pipeline.prepare(request(height=16, width=16))
    pipeline.prepare(request(height=24, width=28))
    pipeline.prepare(request(height=24, width=28, tile=8))
    pipeline.prepare(request(height=16, width=16, tile=24))  # one tile, as large as the frames
    for given in ((), (GREY,)):
        with pytest.raises(OutOfRangeError, match="take tiles of 16 pixels at most, and not 24: choose --tile 16"):
            pipeline.prepare(request(height=24, width=28, frames=34, tile=24, images=given))


# command line


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    bundle = coding_bundle(tmp_path / "bundle")
    text = captions(1)
    np.savez(tmp_path / "text.npz", embeddings=text.embeddings, mask=text.mask)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 24, 28, 3), np.uint8)
    write_video(tmp_path / "a.png", pixels, fps=24)
    size = ["--size", "28x24", "--frames", "34", "--steps", "2", "--text-embeddings", str(tmp_path / "text.npz")]
    return [str(bundle.folder), *size, "--image", str(tmp_path / "a.png"), "--tile", "16"]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """The backend that the command opens."""
    made = FakeBackend(CODERS)
    monkeypatch.setitem(BACKENDS, "onnxruntime", Opens(made))
    return made


def test_a_picture_is_planned_and_not_encoded(command: list[str], backend: FakeBackend, capsys: Capture) -> None:
    assert cli.main([*command, "--estimate-memory"]) == 0
    cells = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    rows = {name.strip(): value.strip() for _, name, value, _ in cells}
    assert backend.log == []
    for part in ("encoder of pixels", "decoder"):
        assert rows[f"activations of the {part}"] == "grows as needed"
    assert rows["activations of the engines"] == "grows as needed"


def test_a_picture_is_encoded_by_tiles(command: list[str], backend: FakeBackend, tmp_path: Path) -> None:
    assert cli.main([*command, "-o", str(tmp_path / "out.npz")]) == 0
    assert backend.log.count("vae_encoder.spatial") == 2 * 3
    assert backend.log.count("vae_encoder.temporal") == 1


def test_a_picture_that_cannot_be_encoded_here_stops_the_run(
    command: list[str], backend: FakeBackend, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(backend.device), "free_nbytes", lambda _self: 1000)
    assert cli.main([*command, "-o", str(tmp_path / "out.npz")]) == 1
    assert "does not fit into memory" in capsys.readouterr().err
    assert backend.log == []
