"""Open-Sora-Plan's CausalVAE 4x8x8, whose first latent frame is one frame and every other one four.

Source: PKU-YuanGroup/Open-Sora-Plan v1.1.0, ``opensora/models/ae/videobase/causal_vae/modeling_causalvae.py``.
Two published shapes: that of v1.1.0's weights (``docs/Train_And_Eval_CausalVideoVAE.md``) has an encoder that begins
with convolutions of single frames, and learned up- and down-sampling of time; the older one of
``scripts/causalvae/release.json`` is causal throughout and has no weights that resample time.

Axes: B batch, C latent channels, T latent frames, F = temporal_factor * (T - 1) + 1 frames, H x W latent rows and
columns, P = spatial_factor. Normalisation and attention see the whole of what they are given, so the results depend on
how a long clip or a large frame is cut up: :mod:`adacache_runtime.causal_tiles` does it as the original does.
"""

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from adacache_engines.errors import CheckpointError
from adacache_export.models import causal_vae_layers as layers

KIND = "CausalVAEModel"
SCALING_FACTOR = 0.18215  # in the original's code, not in its configuration
PIXEL_CHANNELS = 3
LOG_VARIANCES = (-30.0, 20.0)  # the least and the greatest of the posterior
UNUSED = "loss."  # begins the keys that only training needs

Conv = Literal["Conv2d", "CausalConv3d"]
ResnetBlock = Literal["ResnetBlock2D", "ResnetBlock3D"]
Attention = Literal["AttnBlock3D", "AttnBlock3DFix"]
SpatialDown = Literal["", "Downsample", "SpatialDownsample2x"]
SpatialUp = Literal["", "SpatialUpsample2x"]
TemporalDown = Literal["", "TimeDownsample2x", "TimeDownsampleRes2x"]
TemporalUp = Literal["", "TimeUpsample2x", "TimeUpsampleRes2x"]

Entry = TypeVar("Entry")
OfLevels = Annotated[tuple[Entry, ...], Field(strict=False, min_length=1)]


class CausalVaeConfig(BaseModel):
    """The fields of a CausalVAE's ``config.json`` that change its mathematics, under their published names and with
    the original's defaults. Levels are listed from the largest frames to the smallest.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    hidden_size: PositiveInt = 128
    hidden_size_mult: OfLevels[PositiveInt] = (1, 2, 4, 4)
    num_res_blocks: PositiveInt = 2
    z_channels: PositiveInt = 4
    embed_dim: PositiveInt = 4
    double_z: Literal[True] = True
    attn_resolutions: Annotated[tuple[int, ...], Field(strict=False, max_length=0)] = ()
    q_conv: Literal["CausalConv3d"] = "CausalConv3d"
    encoder_conv_in: Conv = "CausalConv3d"
    encoder_conv_out: Conv = "CausalConv3d"
    encoder_attention: Attention = "AttnBlock3D"
    encoder_mid_resnet: ResnetBlock = "ResnetBlock3D"
    encoder_resnet_blocks: OfLevels[ResnetBlock] = ("ResnetBlock3D",) * 4
    encoder_spatial_downsample: OfLevels[SpatialDown] = (*("SpatialDownsample2x",) * 3, "")
    encoder_temporal_downsample: OfLevels[TemporalDown] = ("", "TimeDownsample2x", "TimeDownsample2x", "")
    decoder_conv_in: Conv = "CausalConv3d"
    decoder_conv_out: Conv = "CausalConv3d"
    decoder_attention: Attention = "AttnBlock3D"
    decoder_mid_resnet: ResnetBlock = "ResnetBlock3D"
    decoder_resnet_blocks: OfLevels[ResnetBlock] = ("ResnetBlock3D",) * 4
    decoder_spatial_upsample: OfLevels[SpatialUp] = ("", *("SpatialUpsample2x",) * 3)
    decoder_temporal_upsample: OfLevels[TemporalUp] = ("", "", "TimeUpsample2x", "TimeUpsample2x")

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "CausalVaeConfig":
        """From the content of ``config.json``; other fields are ignored.

        Raises:
            CheckpointError: lists all fields that are not supported.
        """
        try:
            settled = cls.model_validate(config)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
            raise CheckpointError("; ".join(problems)) from error
        if problems := settled._problems():
            raise CheckpointError("; ".join(problems))
        return settled

    @property
    def levels(self) -> int:
        return len(self.hidden_size_mult)

    @property
    def spatial_factor(self) -> int:
        """Pixels of a latent row or column."""
        return 1 << _count(self.decoder_spatial_upsample)

    @property
    def temporal_factor(self) -> int:
        """Frames of every latent frame but the first."""
        return 1 << _count(self.decoder_temporal_upsample)

    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.hidden_size * multiple for multiple in self.hidden_size_mult]

    def _problems(self) -> list[str]:
        down, up = "downsample", "upsample"
        lists = ["encoder_resnet_blocks", f"encoder_spatial_{down}", f"encoder_temporal_{down}"]
        lists += ["decoder_resnet_blocks", f"decoder_spatial_{up}", f"decoder_temporal_{up}"]
        problems = [
            f"{name}: expected {self.levels} entries, as many as in hidden_size_mult"
            for name in lists
            if len(getattr(self, name)) != self.levels
        ]
        for axis in ("spatial", "temporal"):
            encoder, decoder = f"encoder_{axis}_{down}", f"decoder_{axis}_{up}"
            if getattr(self, encoder)[-1]:
                problems.append(f"{encoder}: expected an empty last entry: the original would ignore it")
            if _count(getattr(self, encoder)) != _count(getattr(self, decoder)):
                problems.append(f"{decoder}: expected as many entries that are not empty as in {encoder}")
        if self.hidden_size % layers.NORM_GROUPS:
            problems.append(f"hidden_size: expected a multiple of {layers.NORM_GROUPS}")
        return problems


class Level(nn.Module):
    """Blocks of one width; what resamples their result is under the original's names."""

    def __init__(self, kind: ResnetBlock, widths: list[int], **resamplers: str) -> None:
        super().__init__()
        block = getattr(layers, kind)
        self.block = nn.ModuleList(block(*pair) for pair in itertools.pairwise(widths))
        self.resamplers = [name for name, kind in resamplers.items() if kind]
        for name in self.resamplers:
            self.add_module(name, getattr(layers, resamplers[name])(widths[-1]))

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.block:
            hidden = block(hidden)
        for name in self.resamplers:
            hidden = self.get_submodule(name)(hidden)
        return hidden


class Middle(nn.Module):
    def __init__(self, kind: ResnetBlock, attention: Attention, width: int) -> None:
        super().__init__()
        self.block_1 = getattr(layers, kind)(width, width)
        self.attn_1 = getattr(layers, attention)(width)
        self.block_2 = getattr(layers, kind)(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(hidden)))
        return out


class Encoder(nn.Module):
    """Pixels (B, 3, F, P H, P W) -> (B, 2 z_channels, T, H, W)."""

    def __init__(self, config: CausalVaeConfig) -> None:
        super().__init__()
        widths = config.widths()
        before = [config.hidden_size, *widths]
        self.conv_in = getattr(layers, config.encoder_conv_in)(PIXEL_CHANNELS, config.hidden_size, 3)
        self.down = nn.ModuleList(
            Level(
                config.encoder_resnet_blocks[i],
                [before[i], *[widths[i]] * config.num_res_blocks],
                downsample=config.encoder_spatial_downsample[i],
                time_downsample=config.encoder_temporal_downsample[i],
            )
            for i in range(config.levels)
        )
        self.mid = Middle(config.encoder_mid_resnet, config.encoder_attention, widths[-1])
        self.norm_out = layers.norm(widths[-1])
        self.conv_out = getattr(layers, config.encoder_conv_out)(widths[-1], 2 * config.z_channels, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.conv_in(pixels)
        for level in self.down:
            hidden = level(hidden)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(hidden))))
        return out


class Decoder(nn.Module):
    """(B, z_channels, T, H, W) -> pixels (B, 3, F, P H, P W)."""

    def __init__(self, config: CausalVaeConfig) -> None:
        super().__init__()
        widths = config.widths()
        before = [*widths[1:], widths[-1]]
        self.conv_in = getattr(layers, config.decoder_conv_in)(config.z_channels, widths[-1], 3)
        self.mid = Middle(config.decoder_mid_resnet, config.decoder_attention, widths[-1])
        self.up = nn.ModuleList(
            Level(
                config.decoder_resnet_blocks[i],
                [before[i], *[widths[i]] * (config.num_res_blocks + 1)],
                upsample=config.decoder_spatial_upsample[i],
                time_upsample=config.decoder_temporal_upsample[i],
            )
            for i in range(config.levels)
        )
        self.norm_out = layers.norm(widths[0])
        self.conv_out = getattr(layers, config.decoder_conv_out)(widths[0], PIXEL_CHANNELS, 3)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            hidden = level(hidden)
        out: Tensor = self.conv_out(F.silu(self.norm_out(hidden)))
        return out


class ClipDecoder(nn.Module):
    """The half that decodes, from latents as a diffusion model has them."""

    def __init__(self, config: CausalVaeConfig) -> None:
        super().__init__()
        self.post_quant_conv = layers.CausalConv3d(config.embed_dim, config.z_channels, 1)
        self.decoder = Decoder(config)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, 3, F, P H, P W), about -1 to 1 and not cut off."""
        pixels: Tensor = self.decoder(self.post_quant_conv(latents / SCALING_FACTOR))
        return pixels


class ClipEncoder(nn.Module):
    """The half that encodes. What it returns, and not yet :func:`latents_of` it, is what the original blends where
    tiles overlap.
    """

    def __init__(self, config: CausalVaeConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.quant_conv = layers.CausalConv3d(2 * config.z_channels, 2 * config.embed_dim, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, F, P H, P W), -1 to 1 -> moments (B, 2 C, T, H, W): means and log-variances of the posterior.

        Any number of frames is taken; T is what halving F with ``(frames - 1) // 2 + 1`` gives.
        """
        moments: Tensor = self.quant_conv(self.encoder(pixels))
        return moments


def latents_of(moments: Tensor, noise: Tensor | float) -> Tensor:
    """The latents that a diffusion model has: the posterior's sample by ``noise`` (B, C, T, H, W), standard normal, or
    its mean for 0.0, times the scaling factor.
    """
    mean, log_variance = moments.chunk(2, dim=1)
    return SCALING_FACTOR * (mean + torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCES)) * noise)


def _count(resamplers: tuple[str, ...]) -> int:
    return sum(map(bool, resamplers))
