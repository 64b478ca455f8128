"""Bundles of a VAE alone, without a model."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from safetensors.torch import load_file, save_file
from torch import Tensor

from adacache_engines.bundle.files import MANIFEST, Bundle, dump_manifest, read_manifest
from adacache_engines.bundle.latent_space import VaePrecision
from adacache_engines.bundle.manifest import LatentSpace
from adacache_engines.bundle.shape_profiles import shape_profile
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_engines.tensorrt.build import BuildOptions
from adacache_engines.tensorrt.library import open_library
from adacache_engines.tensorrt.plan_builder import build_plans
from adacache_export.frame_rules import CHUNKS_OF_17, FIRST_THEN_FOURS
from adacache_export.parts.vae import add_decoder
from adacache_export.phases import Progress
from adacache_export.vaes.causal_vae.modules import CausalVaeConfig, ClipDecoder
from adacache_export.vaes.registry import Vae, open_vae
from adacache_runtime.samplers.update import Floats
from adacache_runtime.vae.decode import decode
from tests.helpers.model import fake_model
from tests.helpers.originals.causal_vae_reference import PUBLISHED
from tests.helpers.originals.reference import OPEN_SORA

CONFIG = "config.json"
OPEN_SORA_LATENT = LatentSpace(channels=4, patch=(1, 2, 2), spatial_factor=2, frames=CHUNKS_OF_17, decoder="none")
LATTE_LATENT = LatentSpace(channels=4, patch=(1, 2, 2), spatial_factor=8, decoder="none")
OPEN_SORA_PLAN_LATENT = LATTE_LATENT.model_copy(update={"frames": FIRST_THEN_FOURS})
LATENTS = {  # of the VAEs that the fixture ``vae_of`` gives, by the same names
    "stable-diffusion": LATTE_LATENT,
    "open-sora": OPEN_SORA_LATENT,
    "causal": OPEN_SORA_PLAN_LATENT.model_copy(update={"spatial_factor": 2}),
    "temporal-decoder": LATTE_LATENT.model_copy(update={"spatial_factor": 2}),
}
SHIFT, SCALE = (-0.10, 0.34, 0.27, 0.98), (3.85, 2.32, 2.33, 3.06)  # as published


def random_spatial_vae(levels: int) -> AutoencoderKL:
    """Each level but the last doubles rows and columns."""
    torch.manual_seed(levels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()


def write_open_sora_vae(folder: Path, levels: int) -> None:
    """In the published layout; the temporal half is the reference's."""
    tensors = {
        **{f"spatial_vae.module.{name}": value for name, value in random_spatial_vae(levels).state_dict().items()},
        **load_file(OPEN_SORA / "weights_vae_temporal_tiny.safetensors"),
        "shift": torch.tensor(SHIFT).view(1, 4, 1, 1, 1),
        "scale": torch.tensor(SCALE).view(1, 4, 1, 1, 1),
    }
    config = {
        "architectures": ["VideoAutoencoderPipeline"],
        "model_type": "VideoAutoencoderPipeline",
        "micro_frame_size": 17,
        "vae_2d": {"type": "VideoAutoencoderKL", "subfolder": "vae", "norm_num_groups": 4},
        "vae_temporal": {"type": "VAE_Temporal_SD", "from_pretrained": None, "num_groups": 2},
        "shift": SHIFT,
        "scale": SCALE,
    }
    part = folder.with_suffix(".part")
    part.mkdir()
    save_file(tensors, part / "model.safetensors")
    (part / "config.json").write_text(json.dumps(config))
    part.rename(folder)


def random_weights(module: torch.nn.Module) -> torch.nn.Module:
    """Give a module random weights that keep the scale of its inputs, so that each part counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(generator=generator)
            if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):  # a norm's scale
                parameter.mul_(0.1).add_(1)
            elif parameter.ndim > 1:
                parameter *= parameter[0].numel() ** -0.5
            elif name.endswith("bias"):
                parameter *= 0.1
    return module.eval()


def causal_vae_config(levels: int) -> dict[str, Any]:
    """Each level but the last doubles rows and columns, the last two the frames."""
    decoder = {
        "decoder_resnet_blocks": ["ResnetBlock3D"] * levels,
        "decoder_spatial_upsample": ["", *["SpatialUpsample2x"] * (levels - 1)],
        "decoder_temporal_upsample": [*[""] * (levels - 2), *["TimeUpsampleRes2x"] * 2],
    }
    return PUBLISHED | {"hidden_size": 32, "hidden_size_mult": [1] * levels, "num_res_blocks": 1} | decoder


def write_causal_vae(folder: Path, levels: int, **changes: object) -> None:
    """Write a VAE of Open-Sora-Plan as published, with a few tensors that its decoder does not need."""
    config = causal_vae_config(levels) | changes
    decoder = random_weights(ClipDecoder(CausalVaeConfig.from_json(config)))
    others = ("encoder.conv_in.weight", "quant_conv.conv.bias", "loss.discriminator.main.0.bias")
    tensors = decoder.state_dict() | {name: torch.zeros(8) for name in others}
    part = folder.with_suffix(".part")
    part.mkdir()
    save_file(tensors, part / "diffusion_pytorch_model.safetensors")
    (part / "config.json").write_text(json.dumps(config))
    part.rename(folder)


def write_temporal_decoder(folder: Path, levels: int) -> None:
    """As diffusers saves it."""
    torch.manual_seed(0)
    kinds = ("DownEncoderBlock2D",) * levels
    vae = AutoencoderKLTemporalDecoder(block_out_channels=(32,) * levels, layers_per_block=1, down_block_types=kinds)
    for name, parameter in vae.named_parameters():
        if name.endswith("mix_factor"):
            torch.nn.init.normal_(parameter)
    part = folder.with_suffix(".part")
    vae.save_pretrained(part)
    part.rename(folder)


def write_vae_bundle(output: Path, source: Path, latent: LatentSpace, precision: VaePrecision = "fp32") -> None:
    """Write a bundle with nothing but the VAE in a folder, as export writes it."""
    folder = output.with_suffix(".part")
    folder.mkdir(parents=True)
    logging.disable()
    try:
        part, made = add_decoder(folder, open_vae(source, latent, precision), latent, Progress())
    finally:
        logging.disable(logging.NOTSET)
    manifest = fake_model.manifest(dict(part.files)).model_copy(
        update={
            "latent": made,
            "stages": (),
            "arithmetic": {},
            "signals": {},
            "weights": part.weights,
            "part_weights": {"vae": part.weights},
        }
    )
    (folder / MANIFEST).write_text(dump_manifest(manifest))
    folder.rename(output)


def set_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({name: value for name, value in config.items() if value != "absent"}))


def set_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def stage_of(vae: Vae) -> Callable[[Tensor], Tensor]:
    """The only one, with its weights."""
    (stage,), tensors = vae.coding.decoding, vae.checkpoint.tensors
    stage.module.load_state_dict({name: tensors[key].float() for name, key in stage.keys().items()}, assign=True)
    return torch.no_grad()(stage.module)


def decoded_at_once(bundle: Bundle, backend: OrtBackend, latents: Floats, **options: Any) -> Floats:
    """All that :func:`adacache_runtime.vae.decode.decode` gives, as one array."""
    return np.concatenate(list(decode(bundle, backend, latents, **options)), axis=1)


def alone(bundle: Bundle, **changes: object) -> Bundle:
    """With another latent space."""
    latent = bundle.manifest.latent.model_copy(update=changes)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"latent": latent}))


def build_vae_plans(bundle: Path, tmp_path: Path, profile: str) -> set[str]:
    """Compile a copy of a bundle for TensorRT-RTX; return the names of the graphs whose plans are files."""
    folder = Path(shutil.copytree(bundle, tmp_path / "compiled"))
    profiles = {"any": shape_profile(read_manifest(folder), profile)}
    plans = build_plans(folder, open_library("tensorrt-rtx"), profiles, BuildOptions(), workers=1)
    return {entry.graph for entry in plans.plans if folder.joinpath(entry.path).stat().st_size == entry.nbytes > 0}
