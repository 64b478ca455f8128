"""The AutoencoderKL as a stage: its engine is diffusers' decoder, and what it cannot be is refused by name."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from adacache_engines.bundle.files import open_bundle
from adacache_engines.errors import InputError, MissingDependencyError
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.commands.export import main as export
from adacache_export.convert import convert
from adacache_export.frame_rules import CHUNKS_OF_17, FIRST_THEN_FOURS
from adacache_export.options import Options
from adacache_export.vaes.coding import PREFIX
from adacache_export.vaes.registry import open_vae, recognise_vae
from adacache_runtime.vae.decode import decode
from tests.helpers.tiny_models.vae_bundle import LATTE_LATENT, set_config, set_weights, stage_of

Capture = pytest.CaptureFixture[str]
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
TOLERANCE = 2e-5
SCALE = 0.18215
ATTENTION = "decoder.mid_block.attentions.0."


@pytest.fixture
def folder(vae_folder: Path, tmp_path: Path) -> Path:
    """One to spoil."""
    return Path(shutil.copytree(vae_folder, tmp_path / "vae"))


@pytest.fixture(scope="module")
def reference(vae_folder: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(vae_folder).eval()


def images(count: int = 2, height: int = 3, width: int = 5) -> torch.Tensor:
    return torch.randn((count, 4, height, width), generator=torch.Generator().manual_seed(height))


def decoded(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vae.decode(latents / SCALE).sample


# the engine


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (7, 2), (1, 1)])
def test_engine_equals_diffusers(size: tuple[int, int], decoding_folder: Path, reference: AutoencoderKL) -> None:
    bundle, latents = open_bundle(decoding_folder), images(3, *size)
    frames = list(decode(bundle, OrtBackend(decoding_folder), latents.transpose(0, 1).numpy()))
    assert [frame.shape for frame in frames] == [(3, 1, 8 * size[0], 8 * size[1])] * 3
    assert all(frame.dtype == np.float32 for frame in frames)
    for frame, image in zip(frames, latents, strict=True):
        assert np.abs(frame[:, 0] - decoded(reference, image[None])[0].numpy()).max() < TOLERANCE


def test_the_bundle_has_the_decoder_alone(decoding_folder: Path, reference: AutoencoderKL) -> None:
    manifest = open_bundle(decoding_folder).manifest
    tensors = load_file(decoding_folder / manifest.part_weights["vae"])
    wanted = {name: value for name, value in reference.state_dict().items() if name.startswith(("decoder", "post"))}
    assert set(tensors) == {PREFIX + name for name in wanted}
    assert all(torch.equal(tensors[PREFIX + name], value) for name, value in wanted.items())
    model = load_file(decoding_folder / manifest.weights)
    assert not [name for name in model if name.startswith(PREFIX)]
    space = manifest.latent
    assert space.decoder == "autoencoder-kl"
    (graph,) = space.decoding
    assert [str(spec) for spec in (*graph.inputs, *graph.outputs)] == [
        "latents float32 (images, 4, height, width)",
        "pixels float32 (images, 3, pixel_height, pixel_width)",
    ]
    assert graph.check is not None
    assert graph.check.error < TOLERANCE
    assert manifest.graphs()[-1] == graph
    assert space.encoding == ()
    assert (decoding_folder / graph.path).stat().st_size < 200_000  # no weights in it


def test_inspect_and_verify(decoding_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    assert export(["--inspect", str(decoding_folder)]) == 0
    assert "autoencoder-kl" in capsys.readouterr().out
    assert export(["--verify", str(decoding_folder)]) == 0
    assert "decoder" in capsys.readouterr().out
    copy = Path(shutil.copytree(decoding_folder, tmp_path / "copy"))
    next(copy.glob("vae-*/decoder.onnx")).unlink()
    assert export(["--verify", str(copy)]) == 1
    assert "/decoder.onnx is missing" in capsys.readouterr().err


# what a folder may hold


def old_names(tensors: dict[str, torch.Tensor]) -> None:
    for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
        for kind in ("weight", "bias"):
            for half in ("encoder", "decoder"):
                place = ATTENTION.replace("decoder", half)
                tensors[f"{place}{old}.{kind}"] = tensors.pop(f"{place}{new}.{kind}")


def convolutions(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if ATTENTION in name and tensor.ndim == 2:
            tensors[name] = tensor[:, :, None, None].contiguous()


def oldest(tensors: dict[str, torch.Tensor]) -> None:
    convolutions(tensors)
    old_names(tensors)


LAYOUTS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "of today": lambda _tensors: None,
    "old names": old_names,
    "convolutions": convolutions,
    "old names of convolutions": oldest,
    "the decoder alone": lambda tensors: [tensors.pop(name) for name in list(tensors) if "encoder" in name],
}


@pytest.mark.parametrize("file", [WEIGHTS, "diffusion_pytorch_model.bin"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, file: str, folder: Path, reference: AutoencoderKL) -> None:
    set_weights(folder, LAYOUTS[layout])
    if file != WEIGHTS:
        torch.save(load_file(folder / WEIGHTS), folder / file)
        (folder / WEIGHTS).unlink()
    vae = open_vae(folder, LATTE_LATENT)
    (stage,) = vae.coding.decoding
    assert set(vae.checkpoint.tensors) == set(stage.keys().values())
    assert all(parameter.is_meta for parameter in stage.module.parameters())
    assert not list(stage.module.buffers())
    assert (stage_of(vae)(images()) - decoded(reference, images())).abs().max() < TOLERANCE


def test_scale_and_shift_are_the_configs(folder: Path, reference: AutoencoderKL) -> None:
    set_config(folder, scaling_factor=0.5, shift_factor=0.25)
    with torch.no_grad():
        wanted = reference.decode(images() / 0.5 + 0.25).sample
    assert (stage_of(open_vae(folder, LATTE_LATENT))(images()) - wanted).abs().max() < TOLERANCE
    set_config(folder, scaling_factor="absent", shift_factor=None)
    assert (stage_of(open_vae(folder, LATTE_LATENT))(images()) - decoded(reference, images())).abs().max() < TOLERANCE


def test_without_the_convolution_before(folder: Path, reference: AutoencoderKL) -> None:
    set_config(folder, use_post_quant_conv=False)
    set_weights(folder, lambda tensors: [tensors.pop(f"post_quant_conv.{kind}") for kind in ("weight", "bias")])
    with torch.no_grad():
        wanted = reference.decoder(images() / SCALE)
    assert (stage_of(open_vae(folder, LATTE_LATENT))(images()) - wanted).abs().max() < TOLERANCE


# what is refused


def test_models_that_no_autoencoder_kl_belongs_to(vae_folder: Path) -> None:
    recognise_vae(vae_folder, LATTE_LATENT)
    with pytest.raises(InputError, match=r"makes pixels itself .*leave --vae out"):
        recognise_vae(vae_folder, LATTE_LATENT.model_copy(update={"decoder": "pixels"}))
    with pytest.raises(InputError, match=r"other latent frames to AutoencoderKL .* a folder with OpenSoraVAE_V1_2"):
        recognise_vae(vae_folder, LATTE_LATENT.model_copy(update={"frames": CHUNKS_OF_17}))
    with pytest.raises(InputError, match=r"other latent frames to AutoencoderKL .* a folder with CausalVAEModel"):
        recognise_vae(vae_folder, LATTE_LATENT.model_copy(update={"frames": FIRST_THEN_FOURS}))


def test_export_says_so_before_it_reads_the_weights(checkpoint: Path, vae_folder: Path, tmp_path: Path) -> None:
    phases: list[str] = []

    class Phases:
        def phase(self, name: str, _total: int) -> Callable[[int], None]:
            phases.append(name)
            return lambda _units: None

    with pytest.raises(InputError, match="other latent frames"):
        convert(checkpoint, tmp_path / "bundle", Options(vae=vae_folder), Phases())
    assert phases == []
    assert list(tmp_path.iterdir()) == []


def test_diffusers_is_needed(vae_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingDependencyError, match=r'diffusers .*pip install "adacache-export\[export\]"'):
        open_vae(vae_folder, LATTE_LATENT)
