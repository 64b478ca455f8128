"""Stable Diffusion's AutoencoderKL as a kind of VAE: it decodes image by image. Latte decodes its frames with it."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adacache_engines.bundle.tensors import TensorSpec
from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint.config import parsed_config
from adacache_export.frame_rules import EACH_FRAME
from adacache_export.stages import Stage
from adacache_export.vaes.autoencoder_kl.modules import FrameDecoder, FrameEncoder, VaeConfig
from adacache_export.vaes.coding import ENCODER, PREFIX, TOLERANCE, Coding

NAME = "autoencoder-kl"
CLASSES = ("AutoencoderKL",)
FRAMES = (EACH_FRAME,)
ATTENTION = re.compile(r"(.+\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names of older diffusers
ATTENTION_WEIGHT = re.compile(r".+\.attentions\.\d+\.(to_q|to_k|to_v|to_out\.0)\.weight")
CONFIG = VaeConfig


def config_from(given: Mapping[str, Any], _shapes: Mapping[str, tuple[int, ...]]) -> VaeConfig:
    """Return the configuration that the content of a ``config.json`` describes; other fields are ignored.

    Raises:
        CheckpointError: lists all fields that are missing or not supported.
    """
    config = parsed_config(VaeConfig, given)
    if len(config.up_block_types) != len(config.block_out_channels):
        raise CheckpointError("up_block_types: expected as many as block_out_channels")
    if any(channels % config.norm_num_groups for channels in config.block_out_channels):
        raise CheckpointError("block_out_channels: expected multiples of norm_num_groups")
    return config


def coding(config: VaeConfig) -> Coding:
    """Return the decoder, which works frame by frame; models with this VAE need no encoder."""
    return Coding(config.latent_channels, config.spatial_factor, (decoder_stage(config, "decoder", PREFIX),))


def tensors(given: Mapping[str, Tensor], _config: VaeConfig) -> dict[str, Tensor]:
    """Return the decoder's tensors, under today's names."""
    return today({name: tensor for name, tensor in given.items() if not name.startswith(ENCODER)})


def today(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names that diffusers uses today.

    Older versions named the projections of attention otherwise, and saved their weights as convolutions of one pixel,
    which become matrices. Other tensors stay as they are.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in given.items():
        old = ATTENTION.fullmatch(name)
        new = f"{old[1]}.{RENAMED[old[2]]}.{old[3]}" if old else name
        matrix = ATTENTION_WEIGHT.fullmatch(new) and tensor.shape[2:] == (1, 1)
        found[new] = tensor.flatten(1) if matrix else tensor
    return found


def decoder_stage(config: VaeConfig, name: str, prefix: str) -> Stage:
    """Return a stage that decodes images.

    It takes ``latents`` (images, channels, height, width), scaled as the model makes them, and gives ``pixels``
    (images, 3, pixel_height, pixel_width), which are about -1 to 1 and not clipped.

    Args:
        config: configuration of the VAE.
        name: name of the stage.
        prefix: prefix of the keys of its weights.
    """
    with torch.device("meta"):
        module = FrameDecoder(config).eval()
    return Stage(name, name, module, prefix, (_latents("latents", config),), (_pixels(),), tolerance=TOLERANCE)


def encoder_stage(config: VaeConfig, name: str, prefix: str) -> Stage:
    """Return a stage that encodes images: ``pixels`` to ``mean`` and ``deviation`` of latents.

    For the arguments and axes see :func:`decoder_stage`.
    """
    with torch.device("meta"):
        module = FrameEncoder(config).eval()
    outputs = (_latents("mean", config), _latents("deviation", config))
    return Stage(name, name, module, prefix, (_pixels(),), outputs, tolerance=TOLERANCE)


def _latents(name: str, config: VaeConfig) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", axes=("images", config.latent_channels, "height", "width"))


def _pixels() -> TensorSpec:
    return TensorSpec(name="pixels", dtype="float32", axes=("images", 3, "pixel_height", "pixel_width"))
