"""Small AutoencoderKLWan of both kinds with random weights, and what diffusers makes of latents and pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from adacache_engines.bundle.manifest import LatentSpace
from adacache_export.frame_rules import FIRST_ALONE_THEN_FOURS
from adacache_runtime.samplers.update import Floats
from tests.helpers.tiny_models.vae_bundle import LATTE_LATENT, random_weights

CHANNELS = 4
LATENT = LATTE_LATENT.model_copy(update={"channels": CHANNELS, "frames": FIRST_ALONE_THEN_FOURS})
MEAN, DEVIATION = [-0.4, 0.1, 0.6, -1.3], [1.7, 0.6, 2.4, 1.1]  # of each channel
COMMON: dict[str, Any] = {
    "z_dim": CHANNELS,
    "num_res_blocks": 1,
    "latents_mean": MEAN,
    "latents_std": DEVIATION,
}
# wide enough that rounding stays below 1e-5: a norm over three random channels amplifies it to several times that
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {
        **COMMON,
        "base_dim": 16,
        "dim_mult": [1, 1, 2],
        "temperal_downsample": [True, True],
        "scale_factor_spatial": 4,
    },
    "residual": {
        **COMMON,
        "base_dim": 3,
        "decoder_base_dim": 4,
        "dim_mult": [1, 2, 2],
        "temperal_downsample": [True, True],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 8,
    },
    # as in the published configurations, where rows are doubled once without frames
    "three doublings": {**COMMON, "base_dim": 16, "dim_mult": [1, 1, 1, 1], "temperal_downsample": [False, True, True]},
}


def random_wan_vae(kind: str) -> AutoencoderKLWan:
    """Return a VAE with one of ``CONFIGS``, in which every part counts."""
    vae = AutoencoderKLWan(**CONFIGS[kind])
    random_weights(vae)
    return vae


def write_wan_vae(folder: Path, kind: str) -> None:
    """Write a VAE as diffusers saves it."""
    part = folder.with_suffix(".part")
    random_wan_vae(kind).save_pretrained(part)
    part.rename(folder)


def factor(kind: str) -> int:
    """Return the number of pixels of a latent row."""
    return int(CONFIGS[kind].get("patch_size", 1)) << (len(CONFIGS[kind]["dim_mult"]) - 1)


def latent_space(kind: str) -> LatentSpace:
    """Return the latent space of a model that a VAE belongs to."""
    return LATENT.model_copy(update={"spatial_factor": factor(kind)})


@torch.no_grad()
def decoded_by_diffusers(vae: AutoencoderKLWan, latents: Floats) -> Floats:
    """Return pixels (3, frames, height, width) of normalised latents (channels, frames, height, width)."""
    mean, deviation = _moments()
    pixels: torch.Tensor = vae.decode(torch.from_numpy(latents)[None] * deviation + mean).sample
    return np.asarray(pixels[0].numpy())


@torch.no_grad()
def encoded_by_diffusers(vae: AutoencoderKLWan, pixels: Floats) -> Floats:
    """Return the most likely latents of pixels, normalised; the axes are as above."""
    mean, deviation = _moments()
    latents: torch.Tensor = (vae.encode(torch.from_numpy(pixels)[None]).latent_dist.mode() - mean) / deviation
    return np.asarray(latents[0].numpy())


def _moments() -> tuple[torch.Tensor, torch.Tensor]:
    mean, deviation = (torch.tensor(some).view(1, -1, 1, 1, 1) for some in (MEAN, DEVIATION))
    return mean, deviation
