"""Modules of Stable Diffusion's AutoencoderKL, built from diffusers' own.

Axes: B images, C channels of a latent, H x W rows and columns.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from adacache_engines.errors import require

LOG_VARIANCE = (-30.0, 20.0)  # it is clipped to this range


class VaeConfig(BaseModel):
    """The fields of an AutoencoderKL's ``config.json`` that change the model, under their published names.

    Defaults are those of diffusers.
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
    latents_mean: None = None  # a value a channel, which later models shift and scale by; not supported
    latents_std: None = None

    @property
    def spatial_factor(self) -> int:
        """Number of pixels of a latent row or column: every block but the last doubles them."""
        return 1 << (len(self.block_out_channels) - 1)


class FrameDecoder(nn.Module):
    """The decoder of diffusers' AutoencoderKL, from latents that are scaled as a diffusion model makes them.

    Source: Rombach et al., arXiv 2112.10752, 4.3.2 (rescaled latents); the shift: Stable Diffusion 3's.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        whole = _diffusers(config)
        self.post_quant_conv = whole.post_quant_conv if config.use_post_quant_conv else nn.Identity()
        self.decoder = whole.decoder
        self.scale, self.shift = config.scaling_factor, config.shift_factor or 0.0

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents (B, C, H, W) to pixels (B, 3, factor * H, factor * W)."""
        pixels: Tensor = self.decoder(self.post_quant_conv(latents / self.scale + self.shift))
        return pixels


class FrameEncoder(nn.Module):
    """The encoder of diffusers' AutoencoderKL, to the distribution of latents that :class:`FrameDecoder` takes."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        whole = _diffusers(config)
        self.encoder, self.quant_conv = whole.encoder, whole.quant_conv
        self.scale, self.shift = config.scaling_factor, config.shift_factor or 0.0

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map pixels (B, 3, H, W) to mean and standard deviation of latents, (B, C, H / factor, W / factor) each."""
        mean, log_variance = self.quant_conv(self.encoder(pixels)).float().chunk(2, dim=1)
        deviation = torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCE))
        return (mean - self.shift) * self.scale, deviation * self.scale


def _diffusers(config: VaeConfig) -> Any:
    kinds = ("DownEncoderBlock2D",) * len(config.block_out_channels)
    return require("diffusers", "export").AutoencoderKL(**config.model_dump(), down_block_types=kinds)
