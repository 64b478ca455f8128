"""The temporal half of Open-Sora 1.2's VAE (its ``VAE_Temporal_SD``).

It turns a chunk of frames, in the latent space of a VAE of images, into a quarter as many latent frames, and back.
Convolutions are causal in time: they see zeros before the chunk's first frame, and nothing after the current one.
Statistics of a GroupNorm are over a whole chunk. The published model has 128, 256, 256 and 512 channels, four blocks a
level, 32 groups, and chunks of 17 frames.

Axes: B chunks, C channels of a latent, N channels of a layer, F frames, T latent frames.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRETCH = 4  # frames of a latent frame
LOG_VARIANCE = (-30.0, 20.0)  # it is clipped to this range
EPS = 1e-5


@dataclass(frozen=True)
class TemporalConfig:
    """Sizes of the temporal half; all but ``groups`` follow from the shapes of its tensors.

    Attributes:
        channels: number of channels of each level, from full frame rate on.
        halving: for each level but the last, whether frames become half as many after it.
        blocks: number of residual blocks in a level.
        coded_channels: number of channels of the frames that are coded.
        latent_channels: number of channels of the latent frames.
        groups: number of groups of a GroupNorm.
    """

    channels: tuple[int, ...] = (128, 256, 256, 512)
    halving: tuple[bool, ...] = (False, True, True)
    blocks: int = 4
    coded_channels: int = 4
    latent_channels: int = 4
    groups: int = 32


class CausalConv3d(nn.Module):
    """A convolution whose zeros in time all come first, (kernel - 1) + (1 - stride) of them."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, (stride, 1, 1), bias=bias)
        self.padding = (*(kernel // 2,) * 4, kernel - stride, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, F, H, W) to (B, N', F / stride, H, W)."""
        convolved: Tensor = self.conv(F.pad(x, self.padding))
        return convolved


class ResBlock(nn.Module):
    """The residual block x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, EPS)
        self.conv1 = CausalConv3d(inputs, outputs, 3, bias=False)
        self.norm2 = nn.GroupNorm(groups, outputs, EPS)
        self.conv2 = CausalConv3d(outputs, outputs, 3, bias=False)
        self.conv3 = nn.Identity() if inputs == outputs else CausalConv3d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, F, H, W) to (B, N', F, H, W)."""
        residual = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        summed: Tensor = residual + self.conv3(x)
        return summed


class Encoder(nn.Module):
    """The encoder, from frames to the moments of a distribution of latent frames."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        channels, groups = config.channels, config.groups
        self.conv_in = CausalConv3d(config.coded_channels, channels[0], 3, bias=False)
        self.block_res_blocks = nn.ModuleList(
            _level(inputs, outputs, config.blocks, groups)
            for inputs, outputs in zip((channels[0], *channels), channels, strict=False)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, width, 3, stride=2) if halves else nn.Identity()
            for width, halves in zip(channels, config.halving, strict=False)
        )
        self.res_blocks = _level(channels[-1], channels[-1], config.blocks, groups)
        self.norm1 = nn.GroupNorm(groups, channels[-1], EPS)
        self.conv2 = CausalConv3d(channels[-1], 2 * config.latent_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, F, H, W) to (B, 2 C, T, H, W), T = ceil(F / 4); zeros come first where F is no multiple."""
        padded = F.pad(x, (0, 0, 0, 0, STRETCH - 1, 0))
        x = self.conv_in(padded[:, :, (x.shape[2] + STRETCH - 1) % STRETCH :])
        for index, level in enumerate(self.block_res_blocks):
            x = level(x)
            if index < len(self.conv_blocks):
                x = self.conv_blocks[index](x)
        moments: Tensor = self.conv2(F.silu(self.norm1(self.res_blocks(x))))
        return moments


class Decoder(nn.Module):
    """The decoder, from latent frames to frames."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        channels, groups = config.channels, config.groups
        self.conv1 = CausalConv3d(config.latent_channels, channels[-1], 3)
        self.res_blocks = _level(channels[-1], channels[-1], config.blocks, groups)
        self.block_res_blocks = nn.ModuleList(
            _level(inputs, outputs, config.blocks, groups)
            for inputs, outputs in zip((*channels[1:], channels[-1]), channels, strict=True)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, 2 * width, 3) if doubles else nn.Identity()
            for width, doubles in zip(channels[1:], config.halving, strict=True)
        )
        self.norm1 = nn.GroupNorm(groups, channels[0], EPS)
        self.conv_out = CausalConv3d(channels[0], config.coded_channels, 3)

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, C, T, H, W) to (B, C, 4 T, H, W)."""
        x = self.res_blocks(self.conv1(z))
        for index in reversed(range(len(self.block_res_blocks))):
            x = self.block_res_blocks[index](x)
            if index and not isinstance(self.conv_blocks[index - 1], nn.Identity):
                x = _depth_to_time(self.conv_blocks[index - 1](x))
        frames: Tensor = self.conv_out(F.silu(self.norm1(x)))
        return frames


class TemporalDecoder(nn.Module):
    """The decoding half, from latents whose channels are shifted and scaled as the diffusion model makes them."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        width = config.latent_channels
        self.temporal_vae = nn.ModuleDict(
            {"post_quant_conv": CausalConv3d(width, width, 1), "decoder": Decoder(config)}
        )
        self.scale, self.shift = _per_channel(width), _per_channel(width)

    def forward(self, latents: Tensor) -> Tensor:
        """Map (B, C, T, H, W) to (B, C, 4 T, H, W), of which the last n are the frames of a chunk of n frames."""
        z = self.temporal_vae["post_quant_conv"](latents * self.scale + self.shift)
        frames: Tensor = self.temporal_vae["decoder"](z)
        return frames


class TemporalEncoder(nn.Module):
    """The encoding half, to the distribution of latents that :class:`TemporalDecoder` takes."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        width = 2 * config.latent_channels
        self.temporal_vae = nn.ModuleDict({"encoder": Encoder(config), "quant_conv": CausalConv3d(width, width, 1)})
        self.scale, self.shift = _per_channel(config.latent_channels), _per_channel(config.latent_channels)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map frames (B, C, F, H, W) to mean and standard deviation of latents, (B, C, T, H, W) each."""
        moments = self.temporal_vae["quant_conv"](self.temporal_vae["encoder"](frames))
        mean, log_variance = moments.float().chunk(2, dim=1)
        deviation = torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCE))
        return (mean - self.shift) / self.scale, deviation / self.scale


def _level(inputs: int, outputs: int, blocks: int, groups: int) -> nn.Sequential:
    widths = [inputs, *[outputs] * (blocks - 1)]
    return nn.Sequential(*(ResBlock(width, outputs, groups) for width in widths))


def _per_channel(channels: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(1, channels, 1, 1, 1))


def _depth_to_time(x: Tensor) -> Tensor:
    """Turn (B, 2 N, F, H, W) into (B, N, 2 F, H, W): channels 2 n and 2 n + 1 become a frame and the next."""
    batch, channels, frames, height, width = x.shape
    split = x.reshape(batch, channels // 2, 2, frames, height, width)
    return split.transpose(2, 3).reshape(batch, channels // 2, 2 * frames, height, width)
