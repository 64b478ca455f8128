"""Stable Diffusion's AutoencoderKL: latents to pixels and back, image by image. Latte decodes its frames with it."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from adacache_engines.bundle.tensors import TensorSpec
from adacache_engines.errors import CheckpointError, require
from adacache_export.checkpoint.config import settled
from adacache_export.frame_rules import EACH_FRAME
from adacache_export.stages import Stage
from adacache_export.vaes.coding import ENCODER, PREFIX, TOLERANCE, Coding

NAME = "autoencoder-kl"
CLASSES = ("AutoencoderKL",)
FRAMES = (EACH_FRAME,)
ATTENTION = re.compile(r"(.+\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # older diffusers' names
ATTENTION_WEIGHT = re.compile(r".+\.attentions\.\d+\.(to_q|to_k|to_v|to_out\.0)\.weight")
LOG_VARIANCE = (-30.0, 20.0)  # beyond, it is cut off


class VaeConfig(BaseModel):
    """The fields of an AutoencoderKL's ``config.json`` that change the model, under their published names and with
    diffusers' defaults.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    block_out_channels: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]
    up_block_types: Annotated[tuple[Literal["UpDecoderBlock2D"], ...], Field(strict=False)]
    latent_channels: PositiveInt = 4
    out_channels: Literal[3] = 3
    layers_per_block: PositiveInt = 1
    norm_num_groups: PositiveInt = 32
    act_fn: Literal["silu", "swish"] = "silu"
    mid_block_add_attention: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: PositiveFloat = 0.18215
    shift_factor: float | None = None
    latents_mean: None = None  # one a channel, of later models that shift and scale by these instead
    latents_std: None = None

    @property
    def spatial_factor(self) -> int:
        """Pixels of a latent row or column: every block but the last doubles them."""
        return 1 << (len(self.block_out_channels) - 1)


class FrameDecoder(nn.Module):
    """The half of diffusers' AutoencoderKL that decodes, from latents as a diffusion model has them.

    Source: Rombach et al., arXiv 2112.10752, 4.3.2 (rescaled latents); the shift: Stable Diffusion 3's.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        whole = _diffusers(config)
        self.post_quant_conv = whole.post_quant_conv if config.use_post_quant_conv else nn.Identity()
        self.decoder = whole.decoder
        self.scale, self.shift = config.scaling_factor, config.shift_factor or 0.0

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3, factor * H, factor * W)."""
        pixels: Tensor = self.decoder(self.post_quant_conv(latents / self.scale + self.shift))
        return pixels


class FrameEncoder(nn.Module):
    """The other half, to the distribution of such latents."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        whole = _diffusers(config)
        self.encoder, self.quant_conv = whole.encoder, whole.quant_conv
        self.scale, self.shift = config.scaling_factor, config.shift_factor or 0.0

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> mean and standard deviation (B, C, H / factor, W / factor)."""
        mean, log_variance = self.quant_conv(self.encoder(pixels)).float().chunk(2, dim=1)
        deviation = torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCE))
        return (mean - self.shift) * self.scale, deviation * self.scale


CONFIG = VaeConfig


def config_from(given: Mapping[str, Any], _shapes: Mapping[str, tuple[int, ...]]) -> VaeConfig:
    """From the content of ``config.json``; other fields are ignored.

    Raises:
        CheckpointError: lists all fields that are missing or not supported.
    """
    config = settled(VaeConfig, given)
    if len(config.up_block_types) != len(config.block_out_channels):
        raise CheckpointError("up_block_types: expected as many as block_out_channels")
    if any(channels % config.norm_num_groups for channels in config.block_out_channels):
        raise CheckpointError("block_out_channels: expected multiples of norm_num_groups")
    return config


def coding(config: VaeConfig) -> Coding:
    """Frame by frame; without an encoder, which no model that takes this VAE generates from."""
    return Coding(config.latent_channels, config.spatial_factor, (decoder_stage(config, "decoder", PREFIX),))


def tensors(given: Mapping[str, Tensor], _config: VaeConfig) -> dict[str, Tensor]:
    """The decoder's."""
    return today({name: tensor for name, tensor in given.items() if not name.startswith(ENCODER)})


def today(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Old names of attention made today's, and its weights that were saved as convolutions of one pixel made matrices;
    others as they are.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in given.items():
        old = ATTENTION.fullmatch(name)
        new = f"{old[1]}.{RENAMED[old[2]]}.{old[3]}" if old else name
        matrix = ATTENTION_WEIGHT.fullmatch(new) and tensor.shape[2:] == (1, 1)
        found[new] = tensor.flatten(1) if matrix else tensor
    return found


def decoder_stage(config: VaeConfig, name: str, prefix: str) -> Stage:
    """``latents`` (images, channels, height, width) as the model has them to ``pixels`` (images, 3, pixel_height,
    pixel_width), about -1 to 1 and not cut off.
    """
    with torch.device("meta"):
        module = FrameDecoder(config).eval()
    return Stage(name, name, module, prefix, (_latents("latents", config),), (_pixels(),), tolerance=TOLERANCE)


def encoder_stage(config: VaeConfig, name: str, prefix: str) -> Stage:
    """``pixels`` to ``mean`` and ``deviation`` of latents."""
    with torch.device("meta"):
        module = FrameEncoder(config).eval()
    outputs = (_latents("mean", config), _latents("deviation", config))
    return Stage(name, name, module, prefix, (_pixels(),), outputs, tolerance=TOLERANCE)


def _diffusers(config: VaeConfig) -> Any:
    kinds = ("DownEncoderBlock2D",) * len(config.block_out_channels)
    return require("diffusers", "export").AutoencoderKL(**config.model_dump(), down_block_types=kinds)


def _latents(name: str, config: VaeConfig) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", axes=("images", config.latent_channels, "height", "width"))


def _pixels() -> TensorSpec:
    return TensorSpec(name="pixels", dtype="float32", axes=("images", 3, "pixel_height", "pixel_width"))
