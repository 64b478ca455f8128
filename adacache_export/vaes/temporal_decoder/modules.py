"""diffusers' AutoencoderKLTemporalDecoder (Stable Video Diffusion's, ``vae_temporal_decoder/`` of Latte-1) as a module
that decodes one window of frames.

Its encoder is AutoencoderKL's, image by image; its decoder mixes the frames of a window (Blattmann et al., arXiv
2311.15127, appendix D).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from adacache_engines.errors import CheckpointError, require
from adacache_export.checkpoint.config import settled

NORM_GROUPS = 32


class TemporalDecoderConfig(BaseModel):
    """The fields of an AutoencoderKLTemporalDecoder's ``config.json`` that change the decoder, under their published
    names and with diffusers' defaults.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    block_out_channels: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]
    latent_channels: PositiveInt = 4
    out_channels: Literal[3] = 3
    layers_per_block: PositiveInt = 1
    scaling_factor: PositiveFloat = 0.18215

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "TemporalDecoderConfig":
        """From the content of ``config.json``; other fields are ignored.

        Raises:
            CheckpointError: lists all fields that are missing or not supported.
        """
        made = settled(cls, config)
        if any(channels % NORM_GROUPS for channels in made.block_out_channels):
            raise CheckpointError(f"block_out_channels: expected multiples of {NORM_GROUPS}")
        return made

    @property
    def spatial_factor(self) -> int:
        """Pixels of a latent row or column: every block but the last doubles them."""
        return 1 << (len(self.block_out_channels) - 1)


class WindowDecoder(nn.Module):
    """The half of diffusers' AutoencoderKLTemporalDecoder that decodes, from latents as a diffusion model has them.

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
        """(1, C, frames, H, W) of one window -> (1, 3, frames, factor * H, factor * W), about -1 to 1, not cut off."""
        images = latents[0].transpose(0, 1)
        frames = images.shape[0]
        of_video = images.new_zeros(1, frames)  # diffusers' word for it: none of them is an image of its own
        pixels: Tensor = self.decoder(images / self.scale, image_only_indicator=of_video, num_frames=frames)
        return pixels.transpose(0, 1)[None]
