"""Layers of the decoder of Open-Sora-Plan's CausalVAE, under the original's parameter names.

Source: PKU-YuanGroup/Open-Sora-Plan v1.1.0, ``opensora/models/ae/videobase/modules``.
Axes: B batch, C channels, T frames, H x W rows and columns. Every layer takes and returns (B, C, T, H, W) for any T,
one frame included, in one graph: nothing is decided by the number of frames while tracing.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adacache_export.families.layers import attend

NORM_GROUPS = 32
NORM_EPS = 1e-6
MIX_FACTOR = 2.0  # before training


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS)


class CausalConv3d(nn.Module):
    """A convolution that keeps the size of frames and sees a frame and those before it.

    The first frame stands in for those that would be before it.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, kernel, padding=(0, kernel // 2, kernel // 2))
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(torch.cat([x[:, :, :1]] * (self.kernel - 1) + [x], dim=2) if self.kernel > 1 else x)
        return out


class ResnetBlock3D(nn.Module):
    """The residual block x + conv(silu(norm(conv(silu(norm(x)))))), with statistics of a norm over all frames."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = norm(channels_in)
        self.conv1 = CausalConv3d(channels_in, channels_out, 3)
        self.norm2 = norm(channels_out)
        self.conv2 = CausalConv3d(channels_out, channels_out, 3)
        if channels_in != channels_out:
            self.nin_shortcut: nn.Module = CausalConv3d(channels_in, channels_out, 1)
        else:
            self.nin_shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        out: Tensor = self.nin_shortcut(x) + hidden
        return out


class AttnBlock3DFix(nn.Module):
    """The residual block x + attention(x), among the pixels of a frame and with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = CausalConv3d(channels, channels, 1)
        self.k = CausalConv3d(channels, channels, 1)
        self.v = CausalConv3d(channels, channels, 1)
        self.proj_out = CausalConv3d(channels, channels, 1)

    def images(self, x: Tensor) -> Tensor:
        """Turn frames (B, C, T, H, W) into images (B T, C, H W)."""
        return x.transpose(1, 2).flatten(0, 1).flatten(2)

    def video(self, images: Tensor, x: Tensor) -> Tensor:
        """Turn images back into frames of the shape of ``x``."""
        batch, channels, frames, height, width = x.shape
        return images.reshape(batch, frames, channels, height, width).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x)
        q, k, v = (self.images(layer(hidden).float()).transpose(1, 2)[:, :, None] for layer in (self.q, self.k, self.v))
        attended = attend(q, k, v).transpose(1, 2)
        out: Tensor = x + self.proj_out(self.video(attended, x))
        return out


class AttnBlock3D(AttnBlock3DFix):
    """Attention among pixels, with a mistake that models were trained with.

    (B, C, T) is cut up as if it were (B, T, C), so an "image" is C rows out of the C * T in memory, of a few channels
    at all times.
    """

    def images(self, x: Tensor) -> Tensor:
        batch, channels, frames, height, width = x.shape
        return x.reshape(batch * frames, channels, height * width)

    def video(self, images: Tensor, x: Tensor) -> Tensor:
        return images.reshape(x.shape)


class SpatialUpsample2x(nn.Module):
    """A layer that doubles rows and columns: it repeats each pixel four times, then applies a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ModuleDict({"conv": nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1))})

    def forward(self, x: Tensor) -> Tensor:
        larger = F.interpolate(x.flatten(1, 2), scale_factor=2.0, mode="nearest").unflatten(1, x.shape[1:3])
        out: Tensor = self.conv["conv"](larger)
        return out


class TimeUpsample2x(nn.Module):
    """A layer from T to 2 T - 1 frames: the first stays, linear interpolation makes two of each of the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[2]
        index = torch.arange(frames, device=x.device)
        step = index.clamp(max=1)  # 0 at the first frame, which stays alone
        before, after = torch.maximum(index - 1, step), torch.clamp(index + step, max=frames - 1)
        pair = [x + 0.25 * (x.index_select(2, neighbour) - x) for neighbour in (before, after)]
        return torch.stack(pair, dim=3).flatten(2, 3)[:, :, 1:]


class TimeUpsampleRes2x(TimeUpsample2x):
    """A layer from T to 2 T - 1 frames: a * y + (1 - a) * conv(y) with interpolated y and a = sigmoid(mix_factor)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = CausalConv3d(channels, channels, 3)
        self.mix_factor = nn.Parameter(torch.full((1,), MIX_FACTOR))

    def forward(self, x: Tensor) -> Tensor:
        x, share = super().forward(x), torch.sigmoid(self.mix_factor)
        out: Tensor = share * x + (1 - share) * self.conv(x)
        return out
