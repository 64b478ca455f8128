"""The decoder of Open-Sora-Plan's CausalVAE written down once more: functions over a state dict, with loops over
frames.

Values are (C, T, H, W) of one clip. Names of tensors are the published ones.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Tensors = Mapping[str, Tensor]
RELEASE: dict[str, Any] = {  # what differs from the class's defaults in scripts/causalvae/release.json
    "encoder_temporal_downsample": ["TimeDownsample2x", "TimeDownsample2x", "", ""],
}
PUBLISHED: dict[str, Any] = {  # of the weights of v1.1.0
    "_class_name": "CausalVAEModel",
    "attn_resolutions": [],
    "decoder_attention": "AttnBlock3DFix",
    "decoder_temporal_upsample": ["", "", "TimeUpsampleRes2x", "TimeUpsampleRes2x"],
    "dropout": 0.0,
    "encoder_attention": "AttnBlock3DFix",
    "encoder_conv_in": "Conv2d",
    "encoder_resnet_blocks": ["ResnetBlock2D", "ResnetBlock2D", "ResnetBlock3D", "ResnetBlock3D"],
    "encoder_spatial_downsample": ["Downsample", "Downsample", "Downsample", ""],
    "encoder_temporal_downsample": ["", "TimeDownsampleRes2x", "TimeDownsampleRes2x", ""],
    "hidden_size": 128,
    "hidden_size_mult": [1, 2, 4, 4],
    "in_channels": 3,
    "lr": 1e-05,
    "num_res_blocks": 2,
    "resolution": 256,
}


class Reference:
    """Without scaling, ``post_quant_conv`` included."""

    def __init__(self, tensors: Tensors, config: Mapping[str, Any]) -> None:
        self.tensors, self.config = tensors, config

    def conv(self, name: str, x: Tensor) -> Tensor:
        """Frame by frame, out of the weights of one moment each; those of the first moments see the first frame."""
        weight, bias = self.tensors[f"{name}.conv.weight"], self.tensors[f"{name}.conv.bias"]
        moments = list(weight.unbind(2))
        padding = 1 if weight.shape[-1] == 3 else 0
        made = []
        for frame in range(x.shape[1]):
            total = bias[:, None, None]
            for back, moment in enumerate(reversed(moments)):
                seen = x[:, max(frame - back, 0)]
                total = total + F.conv2d(seen[None], moment, padding=padding)[0]
            made.append(total)
        return torch.stack(made, 1)

    def norm(self, name: str, x: Tensor) -> Tensor:
        groups = x.unflatten(0, (32, -1))
        mean = groups.mean((1, 2, 3, 4), keepdim=True)
        variance = ((groups - mean) ** 2).mean((1, 2, 3, 4), keepdim=True)
        normed = ((groups - mean) / torch.sqrt(variance + 1e-6)).flatten(0, 1)
        weight, bias = (self.tensors[f"{name}.{part}"][:, None, None, None] for part in ("weight", "bias"))
        return normed * weight + bias

    def active(self, name: str, x: Tensor) -> Tensor:
        normed = self.norm(name, x)
        return normed * torch.sigmoid(normed)

    def resnet(self, name: str, x: Tensor) -> Tensor:
        hidden = self.conv(f"{name}.conv1", self.active(f"{name}.norm1", x))
        hidden = self.conv(f"{name}.conv2", self.active(f"{name}.norm2", hidden))
        skipped = f"{name}.nin_shortcut"
        return hidden + (self.conv(skipped, x) if f"{skipped}.conv.weight" in self.tensors else x)

    def attention(self, name: str, x: Tensor, kind: str) -> Tensor:
        channels, frames, rows, columns = x.shape
        hidden = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", hidden).flatten(2) for part in "qkv")  # (C, T, pixels)

        def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return v @ torch.softmax(q.T @ k / channels**0.5, 1).T

        if kind == "AttnBlock3DFix":
            out = torch.stack([attended(q[:, i], k[:, i], v[:, i]) for i in range(frames)], 1)
        else:  # C consecutive rows out of those of all channels and times
            lines = [part.flatten(0, 1) for part in (q, k, v)]
            cuts = [slice(i * channels, (i + 1) * channels) for i in range(frames)]
            out = torch.cat([attended(*(part[cut] for part in lines)) for cut in cuts])
        return x + self.conv(f"{name}.proj_out", out.reshape(channels, frames, rows, columns))

    def middle(self, half: str, x: Tensor) -> Tensor:
        x = self.resnet(f"{half}.mid.block_1", x)
        x = self.attention(f"{half}.mid.attn_1", x, self.config[f"{half}_attention"])
        return self.resnet(f"{half}.mid.block_2", x)

    def longer(self, name: str, kind: str, x: Tensor) -> Tensor:
        if x.shape[1] > 1:
            rest = F.interpolate(x[None, :, 1:], scale_factor=(2, 1, 1), mode="trilinear")[0]
            x = torch.cat([x[:, :1], rest], 1)
        if kind == "TimeUpsample2x":
            return x
        share = torch.sigmoid(self.tensors[f"{name}.mix_factor"])
        return share * x + (1 - share) * self.conv(f"{name}.conv", x)

    def decode(self, latents: Tensor) -> Tensor:
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", latents))
        x = self.middle("decoder", x)
        for i in reversed(range(len(self.config["hidden_size_mult"]))):
            level = f"decoder.up.{i}"
            for block in range(self.config["num_res_blocks"] + 1):
                x = self.resnet(f"{level}.block.{block}", x)
            if self.config["decoder_spatial_upsample"][i]:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(f"{level}.upsample.conv", x)
            if kind := self.config["decoder_temporal_upsample"][i]:
                x = self.longer(f"{level}.time_upsample", kind, x)
        return self.conv("decoder.conv_out", self.active("decoder.norm_out", x))
