"""Bundles of a VAE alone, without a model."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import fake_model
import torch
from diffusers import AutoencoderKL
from reference import OPEN_SORA
from safetensors.torch import load_file, save_file

from adacache_engines.bundle import MANIFEST, Bundle, dump_manifest
from adacache_engines.manifest import LatentSpace
from adacache_export.parts import add_decoder
from adacache_export.phases import Progress
from adacache_export.vaes import open_vae

OPEN_SORA_LATENT = LatentSpace(channels=4, patch=(1, 2, 2), spatial_factor=2, frames="open-sora-vae", decoder="none")
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


def write_vae_bundle(output: Path, source: Path, latent: LatentSpace) -> None:
    """Of the VAE in a folder, written as export does it."""
    folder = output.with_suffix(".part")
    folder.mkdir(parents=True)
    logging.disable()
    try:
        part, made = add_decoder(folder, open_vae(source, latent), latent, Progress())
    finally:
        logging.disable(logging.NOTSET)
    manifest = fake_model.manifest(dict(part.files)).model_copy(
        update={"latent": made, "stages": (), "arithmetic": {}, "weights": part.weights}
    )
    (folder / MANIFEST).write_text(dump_manifest(manifest))
    folder.rename(output)


def alone(bundle: Bundle, **changes: object) -> Bundle:
    """With another latent space."""
    latent = bundle.manifest.latent.model_copy(update=changes)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"latent": latent}))
