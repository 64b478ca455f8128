"""Modules of the decoder of Open-Sora-Plan's CausalVAE 4x8x8: its first latent frame is one frame, each other four.

Source: PKU-YuanGroup/Open-Sora-Plan v1.1.0, ``opensora/models/ae/videobase/causal_vae/modeling_causalvae.py``.
There are two published forms: v1.1.0's weights (``docs/Train_And_Eval_CausalVideoVAE.md``) have learned up-sampling of
time; the older form of ``scripts/causalvae/release.json`` has no weights that resample time.

Axes: B batch, C latent channels, T latent frames, F = temporal_factor * (T - 1) + 1 frames, H x W latent rows and
columns, P = spatial_factor. Normalisation and attention see all frames that they are given, so the results depend on
how a long clip or a large frame is cut up.
"""

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint.config import parsed_config
from adacache_export.vaes.causal_vae import layers

SCALING_FACTOR = 0.18215  # in the original's code, not in its configuration
PIXEL_CHANNELS = 3

Conv = Literal["CausalConv3d"]
ResnetBlock = Literal["ResnetBlock3D"]
Attention = Literal["AttnBlock3D", "AttnBlock3DFix"]
SpatialUp = Literal["", "SpatialUpsample2x"]
TemporalUp = Literal["", "TimeUpsample2x", "TimeUpsampleRes2x"]

Entry = TypeVar("Entry")
OfLevels = Annotated[tuple[Entry, ...], Field(strict=False, min_length=1)]


class CausalVaeConfig(BaseModel):
    """The fields of a CausalVAE's ``config.json`` that change its decoder, under their published names.

    Defaults are those of the original. Levels are listed from the largest frames to the smallest.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    hidden_size: PositiveInt = 128
    hidden_size_mult: OfLevels[PositiveInt] = (1, 2, 4, 4)
    num_res_blocks: PositiveInt = 2
    z_channels: PositiveInt = 4
    embed_dim: PositiveInt = 4
    attn_resolutions: Annotated[tuple[int, ...], Field(strict=False, max_length=0)] = ()
    q_conv: Conv = "CausalConv3d"
    decoder_conv_in: Conv = "CausalConv3d"
    decoder_conv_out: Conv = "CausalConv3d"
    decoder_attention: Attention = "AttnBlock3D"
    decoder_mid_resnet: ResnetBlock = "ResnetBlock3D"
    decoder_resnet_blocks: OfLevels[ResnetBlock] = ("ResnetBlock3D",) * 4
    decoder_spatial_upsample: OfLevels[SpatialUp] = ("", *("SpatialUpsample2x",) * 3)
    decoder_temporal_upsample: OfLevels[TemporalUp] = ("", "", "TimeUpsample2x", "TimeUpsample2x")

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "CausalVaeConfig":
        """Return the configuration that the content of a ``config.json`` describes; other fields are ignored.

        Raises:
            CheckpointError: lists all fields that are not supported.
        """
        made = parsed_config(cls, config)
        if problems := made._problems():
            raise CheckpointError("; ".join(problems))
        return made

    @property
    def levels(self) -> int:
        return len(self.hidden_size_mult)

    @property
    def spatial_factor(self) -> int:
        """Number of pixels of a latent row or column."""
        return 1 << sum(map(bool, self.decoder_spatial_upsample))

    @property
    def temporal_factor(self) -> int:
        """Number of frames of every latent frame but the first."""
        return 1 << sum(map(bool, self.decoder_temporal_upsample))

    def widths(self) -> list[int]:
        """Return the number of channels of each level."""
        return [self.hidden_size * multiple for multiple in self.hidden_size_mult]

    def _problems(self) -> list[str]:
        problems = [
            f"{name}: expected {self.levels} entries, as many as in hidden_size_mult"
            for name in ("decoder_resnet_blocks", "decoder_spatial_upsample", "decoder_temporal_upsample")
            if len(getattr(self, name)) != self.levels
        ]
        if self.hidden_size % layers.NORM_GROUPS:
            problems.append(f"hidden_size: expected a multiple of {layers.NORM_GROUPS}")
        return problems


class Level(nn.Module):
    """A level of the decoder: blocks of one width, then layers that increase rows, columns and frames."""

    def __init__(self, widths: list[int], upsample: SpatialUp, time_upsample: TemporalUp) -> None:
        super().__init__()
        self.block = nn.ModuleList(layers.ResnetBlock3D(*pair) for pair in itertools.pairwise(widths))
        kinds = {"upsample": upsample, "time_upsample": time_upsample}
        self.resamplers = [name for name, kind in kinds.items() if kind]
        for name in self.resamplers:
            self.add_module(name, getattr(layers, kinds[name])(widths[-1]))

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.block:
            hidden = block(hidden)
        for name in self.resamplers:
            hidden = self.get_submodule(name)(hidden)
        return hidden


class Middle(nn.Module):
    def __init__(self, attention: Attention, width: int) -> None:
        super().__init__()
        self.block_1 = layers.ResnetBlock3D(width, width)
        self.attn_1 = getattr(layers, attention)(width)
        self.block_2 = layers.ResnetBlock3D(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(hidden)))
        return out


class Decoder(nn.Module):
    """The decoder proper, from (B, z_channels, T, H, W) to pixels (B, 3, F, P H, P W)."""

    def __init__(self, config: CausalVaeConfig) -> None:
        super().__init__()
        widths = config.widths()
        before = [*widths[1:], widths[-1]]
        self.conv_in = layers.CausalConv3d(config.z_channels, widths[-1], 3)
        self.mid = Middle(config.decoder_attention, widths[-1])
        self.up = nn.ModuleList(
            Level(
                [before[i], *[widths[i]] * (config.num_res_blocks + 1)],
                config.decoder_spatial_upsample[i],
                config.decoder_temporal_upsample[i],
            )
            for i in range(config.levels)
        )
        self.norm_out = layers.norm(widths[0])
        self.conv_out = layers.CausalConv3d(widths[0], PIXEL_CHANNELS, 3)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            hidden = level(hidden)
        out: Tensor = self.conv_out(F.silu(self.norm_out(hidden)))
        return out


class ClipDecoder(nn.Module):
    """The decoding half of the VAE, from latents that are scaled as a diffusion model makes them."""

    def __init__(self, config: CausalVaeConfig) -> None:
        super().__init__()
        self.post_quant_conv = layers.CausalConv3d(config.embed_dim, config.z_channels, 1)
        self.decoder = Decoder(config)

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents (B, C, T, H, W) to pixels (B, 3, F, P H, P W), which are about -1 to 1 and not clipped."""
        pixels: Tensor = self.decoder(self.post_quant_conv(latents / SCALING_FACTOR))
        return pixels
