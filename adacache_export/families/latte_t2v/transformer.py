"""LatteT2V, the transformer of Latte-1 and of Open-Sora-Plan 1.1, as one module for each stage.

Source: Vchitect/Latte, ``models/latte_t2v.py``, and PKU-YuanGroup/Open-Sora-Plan v1.1.0,
``opensora/models/diffusion/latte``; Latte, arXiv 2401.03048.
Axes as in :mod:`adacache_export.families.layers`; H x W is the latent size, C its channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adacache_engines.bundle.manifest import Term
from adacache_export.costs import SAMPLES, TOKENS, Axes, attention, layers, total
from adacache_export.families.diffusers_layers import FeedForward, TimestepEmbedding
from adacache_export.families.layers import (
    adaln_single,
    add_residual,
    attend,
    indices,
    linear,
    modulate,
    sincos_1d,
    sincos_2d,
)
from adacache_export.families.residual_block import ATTENTION_AXES, EVERYWHERE, ModulatedInput, Parts, ResidualBlock

SINUSOID_WIDTH = 256
LARGEST_SAMPLE = 64  # latent rows up to which positions are not interpolated
MLP_RATIO = 4
MASKED = -10000.0  # added to the scores of a masked key: where all keys are masked, all count alike


@dataclass(frozen=True)
class LatteT2VConfig:
    """The fields of LatteT2V's ``config.json`` that change its mathematics, under their published names."""

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int = 8
    num_layers: int = 28
    patch_size: int = 2
    caption_channels: int = 4096
    sample_size: tuple[int, int] = (64, 64)  # latent rows and columns of the size that positions are for
    video_length: int = 16  # latent frames
    norm_eps: float = 1e-6  # of the blocks; that of the final layer is 1e-6 in any case
    model_max_length: int = 120  # text tokens
    interpolation_scale_1d: float = 1.0  # latent frames in a unit of the temporal positions

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


class AdaLayerNormSingle(nn.Module):
    """Modulation of the blocks (B, 6, D), and of the final layer (B, D), from timesteps (B,)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepEmbedding(SINUSOID_WIDTH, width)})
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        time = self.emb["timestep_embedder"](timestep)
        return self.linear(F.silu(time)).unflatten(1, (6, time.shape[1])), time


class Positions(nn.Module):
    """The ``positions`` stage: position embeddings of a frame's tokens, and of frames."""

    def __init__(self, config: LatteT2VConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the position tables of one size, interpolated from the size and the length in training.

        Args:
            latents: latents (B, C, T, H, W), of which only the shape is used.

        Returns:
            embeddings by token (S, D), and by frame (T, D), float32; those of a single frame are zeros.
        """
        config, (_, _, frames, *sides) = self.config, latents.shape
        scale = max(config.sample_size[0] // LARGEST_SAMPLE, 1)
        base = config.sample_size[0] // config.patch_size
        row, column = (
            indices(number, latents) * base / number / scale for number in (side // config.patch_size for side in sides)
        )
        frame = indices(frames, latents)
        by_frame = sincos_1d(frame / config.interpolation_scale_1d, config.width)
        return sincos_2d(row, column, config.width), by_frame * frame[-1:].clamp(max=1.0)


class Embed(nn.Module):
    """The ``embed`` stage: latents and timestep -> tokens, and modulation of the blocks and of the final layer.

    If it is ``probed``, it also returns the modulated input of the first block.
    """

    def __init__(self, config: LatteT2VConfig, probed: bool = False) -> None:
        super().__init__()
        patch = config.patch_size
        self.pos_embed = nn.ModuleDict({"proj": nn.Conv2d(config.in_channels, config.width, patch, stride=patch)})
        self.adaln_single = AdaLayerNormSingle(config.width)
        if probed:
            self.transformer_blocks = nn.ModuleList([ModulatedInput(config.width, config.norm_eps)])
        self.probed = probed

    def forward(self, latents: Tensor, timestep: Tensor, position_tokens: Tensor) -> tuple[Tensor, ...]:
        """Embed the latents and the timestep.

        Args:
            latents: latents (B, C, T, H, W) float32; H and W are multiples of the patch.
            timestep: timesteps (B,) float32, 0 to 999.
            position_tokens: position embeddings (S, D) float32 of a frame's tokens.

        Returns:
            hidden (B, T, S, D); modulation (B, 6, D) float32; time (B, D) float32; and, if probed, the modulated input
            of the first block (B, T, S, D).
        """
        batch, _, frames, _, _ = latents.shape
        pictures = latents.to(self.adaln_single.linear.weight.dtype).transpose(1, 2).flatten(0, 1)
        tokens = self.pos_embed["proj"](pictures).flatten(2).transpose(1, 2).unflatten(0, (batch, frames))
        hidden = add_residual(tokens, position_tokens)
        modulation, time = self.adaln_single(timestep)
        given = (hidden, modulation.float(), time.float())
        return (*given, self.transformer_blocks[0](*given[:2])) if self.probed else given

    def flops(self) -> tuple[Term, ...]:
        return total(layers(self.pos_embed, TOKENS), layers(self.adaln_single, SAMPLES))


class Attention(nn.Module):
    """Attention of ``x`` (n, queries, D) to ``keys`` (n, length, D), both in the precision of the weights."""

    def __init__(self, config: LatteT2VConfig) -> None:
        super().__init__()
        self.heads = (config.num_attention_heads, config.attention_head_dim)
        self.to_q, self.to_k, self.to_v = (nn.Linear(config.width, config.width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(config.width, config.width)])

    def forward(self, x: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            linear(layer, given).unflatten(-1, self.heads)
            for layer, given in ((self.to_q, x), (self.to_k, keys), (self.to_v, keys))
        )
        return linear(self.to_out[0], attend(q, k, v, mask))  # type: ignore[arg-type]

    def flops(self, queries: Axes, keys: Axes) -> tuple[Term, ...]:
        """Return the operations where every query meets the keys on the last of the axes ``keys``."""
        made = [layers(layer, queries) for layer in (self.to_q, self.to_out)]
        met = [layers(layer, keys) for layer in (self.to_k, self.to_v)]
        return total(*made, *met, attention(queries, keys[-1], self.to_q.out_features))


class Block(ResidualBlock):
    """A block, or one of its parts: gated self-attention, in spatial blocks cross attention, and a gated MLP.

    Self-attention is within frames in spatial blocks, and across frames in temporal ones. The block takes hidden
    (B, T, S, D); modulation (B, 6, D) float32, from ``embed``; text (B, L, D), from ``text``; text_mask (B, L) bool,
    True = attend.

    Args:
        config: configuration of the model.
        kind: ``spatial`` or ``temporal``.
        parts, sites: see :class:`ResidualBlock`.
        positions: whether position_frames (T, D) float32, from ``positions``, is added to the hidden state first, as it
            is in the first temporal block.
        masked: whether spatial attention takes token_mask (B, T, S) bool, True = attend, as in Open-Sora-Plan's
            training on padded videos.
    """

    CONDITIONS: Mapping[str, tuple[str, ...]] = {
        "attn": ("modulation",),
        "cross": ("text", "text_mask"),
        "mlp": ("modulation",),
    }
    PARTS: Mapping[str, Parts] = {"spatial": ("attn", "cross", "mlp"), "temporal": ("attn", "mlp")}

    def __init__(
        self,
        config: LatteT2VConfig,
        kind: str,
        parts: Parts,
        sites: tuple[str, ...] = (),
        positions: bool = False,
        masked: bool = False,
    ) -> None:
        extra = [name for name, taken in (("position_frames", positions), ("token_mask", masked)) if taken]
        super().__init__({**self.CONDITIONS, "attn": ("modulation", *extra)}, parts, sites)
        self.temporal, self.positions, self.eps = kind == "temporal", positions, config.norm_eps
        if "modulation" in self.conditions:
            self.scale_shift_table = nn.Parameter(torch.zeros(6, config.width))
        if "attn" in parts:
            self.attn1 = Attention(config)
        if "cross" in parts:
            self.attn2 = Attention(config)
        if "mlp" in parts:
            self.ff = FeedForward(config.width, MLP_RATIO * config.width)

    def forward(self, hidden: Tensor, *conditions: Tensor) -> tuple[Tensor, ...]:
        if self.positions:
            by_frame = conditions[self.conditions.index("position_frames")]
            hidden = add_residual(hidden, by_frame[:, None, :])
        return super().forward(hidden, *conditions)

    def residual(self, part: str, hidden: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        if part == "cross":
            tokens = hidden.flatten(1, 2)  # the text's keys and values are those of the sample, not made anew a frame
            mask = given["text_mask"][:, None, None, :].expand(-1, 1, tokens.shape[1], -1)
            cross: Tensor = self.attn2(tokens, given["text"], mask).view(hidden.shape)
            return cross
        table = adaln_single(self.scale_shift_table, given["modulation"])
        shift, scale, gate = table[:3] if part == "attn" else table[3:]
        modulated = modulate(hidden, shift, scale, self.eps)
        out = self.ff(modulated) if part == "mlp" else self._attention(modulated, given.get("token_mask"))
        gated: Tensor = gate * out
        return gated

    def _attention(self, x: Tensor, token_mask: Tensor | None) -> Tensor:
        """Return the self-attention (B, T, S, D) of ``x`` (B, T, S, D); ``token_mask`` is (B, T, S)."""
        lines = x.transpose(1, 2) if self.temporal else x
        sequences, bias = lines.flatten(0, 1), None
        if token_mask is not None:
            bias = torch.where(token_mask, 0.0, MASKED).to(x.dtype).flatten(0, 1)[:, None, None, :]
            bias = bias.expand(-1, 1, x.shape[2], -1)
        out: Tensor = self.attn1(sequences, sequences, bias).view(lines.shape)
        return out.transpose(1, 2) if self.temporal else out

    def part_axes(self, part: str) -> tuple[str, ...]:
        return ATTENTION_AXES["temporal" if self.temporal else "spatial"] if part == "attn" else EVERYWHERE

    def part_flops(self, part: str) -> tuple[Term, ...]:
        """Return the floating-point operations of ``part``, as published counts have them.

        They count the text's keys and values for every frame: the original makes them anew for each, this module once.
        At 300 tokens of text the difference is 2 % of a call.
        """
        if part == "mlp":
            return (layers(self.ff, TOKENS),)
        if part == "cross":
            return self.attn2.flops(TOKENS, ("batch", "patch_frames", "text"))
        sequences = ("batch", "tokens", "patch_frames") if self.temporal else TOKENS
        return self.attn1.flops(sequences, sequences)


class Final(nn.Module):
    """The ``final`` stage: tokens -> prediction."""

    def __init__(self, config: LatteT2VConfig) -> None:
        super().__init__()
        self.config = config
        self.scale_shift_table = nn.Parameter(torch.zeros(2, config.width))
        self.proj_out = nn.Linear(config.width, config.patch_size**2 * config.out_channels)

    def forward(self, hidden: Tensor, time: Tensor, latents: Tensor) -> Tensor:
        """Return the prediction (B, C_out, T, H, W) float32, with the noise in the first C channels.

        Args:
            hidden: hidden state (B, T, S, D).
            time: modulation (B, D) of this layer.
            latents: latents (B, C, T, H, W), of which only the shape is used.
        """
        patch, (_, _, _, height, width) = self.config.patch_size, latents.shape
        shift, scale = (self.scale_shift_table.float()[None] + time[:, None])[:, :, None, None, :].unbind(1)
        out = linear(self.proj_out, modulate(hidden, shift, scale)).float()
        out = out.unflatten(2, (height // patch, width // patch)).unflatten(
            -1, (patch, patch, self.config.out_channels)
        )
        out = out.permute(0, 6, 1, 2, 4, 3, 5)  # (B, C_out, T, H', patch, W', patch)
        prediction: Tensor = out.flatten(5, 6).flatten(3, 4)
        return prediction

    def flops(self) -> tuple[Term, ...]:
        return total(layers(self, TOKENS))
