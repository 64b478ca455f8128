"""The module of diffusers' AutoencoderKLTemporalDecoder that decodes one chunk of frames.

It is Stable Video Diffusion's VAE, and ``vae_temporal_decoder/`` of Latte-1. The encoder is AutoencoderKL's, image by
image; the decoder mixes the frames of a chunk (Blattmann et al., arXiv 2311.15127, appendix D).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from adacache_engines.errors import CheckpointError, require
from adacache_export.checkpoint.config import parsed_config

NORM_GROUPS = 32


class TemporalDecoderConfig(BaseModel):
    """The fields of an AutoencoderKLTemporalDecoder's ``config.json`` that change the decoder.

    They have their published names and diffusers' defaults.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    block_out_channels: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]
    latent_channels: PositiveInt = 4
    out_channels: Literal[3] = 3
    layers_per_block: PositiveInt = 1
    scaling_factor: PositiveFloat = 0.18215

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "TemporalDecoderConfig":
        """Return the configuration that the content of a ``config.json`` describes; other fields are ignored.

        Raises:
            CheckpointError: lists all fields that are missing or not supported.
        """
        made = parsed_config(cls, config)
        if any(channels % NORM_GROUPS for channels in made.block_out_channels):
            raise CheckpointError(f"block_out_channels: expected multiples of {NORM_GROUPS}")
        return made

    @property
    def spatial_factor(self) -> int:
        """Number of pixels of a latent row or column: every block but the last doubles them."""
        return 1 << (len(self.block_out_channels) - 1)


class ChunkDecoder(nn.Module):
    """The decoder of diffusers' AutoencoderKLTemporalDecoder.

    It takes latents that are scaled as a diffusion model makes them.

    Raises:
        MissingDependencyError: diffusers is not installed.
    """

    def __init__(self, config: TemporalDecoderConfig) -> None:
        super().__init__()
        encoder = ("DownEncoderBlock2D",) * len(config.block_out_channels)
        whole = require("diffusers", "export").AutoencoderKLTemporalDecoder(
            **config.model_dump(), down_block_types=encoder
        )
        self.decoder = whole.decoder
        self.scale = config.scaling_factor

    def forward(self, latents: Tensor) -> Tensor:
        """Map the latents (1, C, frames, H, W) of one chunk to pixels (1, 3, frames, factor * H, factor * W).

        Pixels are about -1 to 1 and not clipped.
        """
        images = latents[0].transpose(0, 1)
        frames = images.shape[0]
        indicator = images.new_zeros(1, frames)  # no frame is an image by itself
        pixels: Tensor = self.decoder(images / self.scale, image_only_indicator=indicator, num_frames=frames)
        return pixels.transpose(0, 1)[None]
