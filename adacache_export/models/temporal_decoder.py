"""diffusers' AutoencoderKLTemporalDecoder (Stable Video Diffusion's, ``vae_temporal_decoder/`` of Latte-1) as a module
that decodes one window of frames.

Its encoder is AutoencoderKL's, image by image; its decoder mixes the frames of a window (Blattmann et al., arXiv
2311.15127, appendix D). A model's sampling code decides on the window: Latte's decodes 14 frames at a time, each window
by itself, the last one being shorter (16 frames: 14 and 2).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from torch import Tensor, nn

from adacache_engines.errors import CheckpointError, require

KIND = "AutoencoderKLTemporalDecoder"
WINDOW = 14  # frames that Latte decodes at a time
NORM_GROUPS = 32
OTHER_HALF = ("encoder.", "quant_conv.")


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
        try:
            settled = cls.model_validate(config)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
            raise CheckpointError("; ".join(problems)) from error
        if any(channels % NORM_GROUPS for channels in settled.block_out_channels):
            raise CheckpointError(f"block_out_channels: expected multiples of {NORM_GROUPS}")
        return settled

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
        """(frames, C, H, W) of one window -> (frames, 3, factor * H, factor * W), about -1 to 1 and not cut off."""
        frames = latents.shape[0]
        of_video = latents.new_zeros(1, frames)  # diffusers' word for it: none of them is an image of its own
        pixels: Tensor = self.decoder(latents / self.scale, image_only_indicator=of_video, num_frames=frames)
        return pixels
