"""The transformer of Wan 2.1 and 2.2, as one module for each stage.

Source: Wan-Video/Wan2.1, ``wan/modules/model.py``, and its port in diffusers, ``WanTransformer3DModel``, whose tensor
names are used here; Wan report, arXiv 2503.20314.
Axes as in :mod:`adacache_export.families.layers`; H x W is the latent size, C the latents' channels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adacache_engines.bundle.manifest import Term
from adacache_export.costs import SAMPLES, TEXT, TOKENS, attention, layers, total
from adacache_export.families.diffusers_layers import FeedForward, TimestepEmbedding
from adacache_export.families.layers import (
    FREQUENCY_BASE,
    RMSNorm,
    adaln_single,
    attend,
    linear,
    modulate,
    rotate,
)
from adacache_export.families.residual_block import EVERYWHERE, Parts, ResidualBlock

TEXT_KEYS = ("text_keys", "text_values")  # what a block's own text stage makes


@dataclass(frozen=True)
class WanConfig:
    """The fields of ``WanTransformer3DModel``'s ``config.json`` that change its mathematics, under those names."""

    patch_size: tuple[int, int, int] = (1, 2, 2)  # (frames, rows, columns) of the latent
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    eps: float = 1e-6
    rope_max_seq_len: int = 1024

    @property
    def condition_channels(self) -> int:
        """Number of channels of the mask and the encoded video that come beside the latents; 0 = there are none."""
        return self.in_channels - self.out_channels

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def rotary_pairs(self) -> tuple[int, int, int]:
        """Numbers of pairs of a head that rotate by frame, by row and by column."""
        sides = self.attention_head_dim // 6
        return self.attention_head_dim // 2 - 2 * sides, sides, sides


class Positions(nn.Module):
    """The ``positions`` stage: cosines and sines by which queries and keys rotate (RoPE, arXiv 2104.09864, eq. 34).

    Pairs of a head rotate by frame, others by row, others by column. The tables are evaluated in float64 and rounded to
    float32, as in the original; the graph has them as constants.
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.tables = [_rotations(config.rope_max_seq_len, pairs) for pairs in config.rotary_pairs]

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rotations of frames and of the tokens of a frame.

        Args:
            latents: latents (B, C, T, H, W), of which only the shape is used.

        Returns:
            cosines and sines by frame (T', 2, pairs), and by token (S, 2, pairs of rows, then of columns), float32.
        """
        frames, rows, columns = (
            table[torch.arange(size // patch)]
            for table, size, patch in zip(self.tables, latents.shape[2:], self.patch_size, strict=True)
        )
        by_row = rows[:, None].expand(-1, columns.shape[0], -1, -1)
        by_column = columns[None].expand(rows.shape[0], -1, -1, -1)
        return frames, torch.cat([by_row, by_column], dim=-1).flatten(0, 1)


def _rotations(length: int, pairs: int) -> Tensor:
    """Return cosines and sines (length, 2, pairs) float32 of an axis with so many pairs."""
    index = torch.arange(pairs, dtype=torch.float64, device="cpu")
    frequency = 1.0 / FREQUENCY_BASE ** (2 * index / (2 * pairs))
    angle = torch.outer(torch.arange(length, dtype=torch.float64, device="cpu"), frequency)
    return torch.stack([angle.cos(), angle.sin()], dim=1).float()


class ConditionEmbedder(nn.Module):
    """Embeddings of timesteps.

    These are ``time`` (B, D) of the final layer, the ``modulation`` (B, 6, D) of all blocks, and the ``embedding``
    (B, D) behind both, not rounded to the model's precision.
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.time_embedder = TimestepEmbedding(config.freq_dim, config.width)
        self.time_proj = nn.Linear(config.width, 6 * config.width)

    def forward(self, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embedding = self.time_embedder(timestep)
        time = embedding.to(self.time_proj.weight.dtype)
        modulation = self.time_proj(F.silu(time)).unflatten(1, (6, time.shape[1])).float()
        return time.float(), modulation, embedding.float().clone()


class BlockInput(nn.Module):
    """The modulated input of the first block's attention, without the block: the probe of TeaCache (arXiv 2411.19108).

    The table is the first block's own, under the name that it has there.
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 6, config.width))
        self.eps = config.eps

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        """Modulate ``hidden`` (B, T, S, D) by ``modulation`` (B, 6, D) or (B, T, 6, D); return (B, T, S, D)."""
        shift, scale, *_ = adaln_single(self.scale_shift_table, modulation)
        return modulate(hidden, shift, scale, self.eps)


class Embed(nn.Module):
    """The ``embed`` stage: latents and timestep -> tokens, and modulation of the blocks and of the final layer.

    It also returns the embedding of the timestep and the modulation for TeaCache, which measures either on these
    models, and, if it is ``probed``, the modulated input of the first block. If it is ``conditioned``, some frames may
    be given and are to be kept: these are modulated as at timestep 0.
    """

    def __init__(self, config: WanConfig, probed: bool = False, conditioned: bool = False) -> None:
        super().__init__()
        patch = config.patch_size
        self.patch_embedding = nn.Conv3d(config.in_channels, config.width, patch, stride=patch)
        self.condition_embedder = ConditionEmbedder(config)
        if probed:
            self.blocks = nn.ModuleList([BlockInput(config)])
        self.probed, self.conditioned = probed, conditioned

    def forward(self, latents: Tensor, timestep: Tensor, x_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Embed the latents and the timestep.

        Args:
            latents: latents (B, C, T, H, W) float32, in whole patches.
            timestep: timesteps (B,) float32; 1000 is pure noise.
            x_mask: mask (B, T') bool, False = a frame that is kept; None unless conditioned.

        Returns:
            hidden (B, T', S, D); modulation (B, 6, D) float32, or (B, T', 6, D) if conditioned; time (B, D) float32, or
            (B, T', D) if conditioned; if probed, the modulated input of the first block (B, T', S, D); and the
            embedding of the timestep (B, D) and its modulation (B, 6 D), float32.
        """
        patches: Tensor = self.patch_embedding(latents.to(self.patch_embedding.weight.dtype))
        hidden = patches.flatten(3).permute(0, 2, 3, 1)
        time, modulation, embedding = self.condition_embedder(timestep)
        of_timestep = (embedding, modulation.flatten(1))
        if x_mask is not None:
            time_of_kept, modulation_of_kept, _ = self.condition_embedder(torch.zeros_like(timestep))
            time = torch.where(x_mask[:, :, None], time[:, None], time_of_kept[:, None])
            modulation = torch.where(x_mask[:, :, None, None], modulation[:, None], modulation_of_kept[:, None])
        shown = (self.blocks[0](hidden, modulation),) if self.probed else ()
        return (hidden, modulation, time, *shown, *of_timestep)

    def flops(self) -> tuple[Term, ...]:
        timesteps = [layers(self.condition_embedder, SAMPLES)] * (1 + self.conditioned)
        return total(layers(self.patch_embedding, TOKENS), *timesteps)


class EmbedWithVideo(Embed):
    """The ``embed`` stage of a model that takes an encoded video beside the latents, in channels of its own."""

    def forward(  # type: ignore[override]  # the third input of this stage is another one
        self, latents: Tensor, timestep: Tensor, video_condition: Tensor
    ) -> tuple[Tensor, ...]:
        """Embed latents and timestep as :class:`Embed` does.

        Args:
            latents: latents (B, C, T, H, W) float32, in whole patches.
            timestep: timesteps (B,) float32; 1000 is pure noise.
            video_condition: mask and latents of the video (1, condition_channels, T, H, W) float32, the same for all
                samples and guidance branches.
        """
        beside = video_condition.expand(latents.shape[0], -1, -1, -1, -1)
        return super().forward(torch.cat([latents, beside], dim=1), timestep)


class CrossAttention(nn.Module):
    """Attention to keys and values that are given, with queries that are normalised over all heads together."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.heads = (config.num_attention_heads, config.attention_head_dim)
        self.to_q = nn.Linear(config.width, config.width)
        self.to_out = nn.ModuleList([nn.Linear(config.width, config.width)])
        self.norm_q = RMSNorm(config.width, config.eps)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the attention (B, N, D) of ``x`` (B, N, D) to ``keys`` and ``values`` (B, L, D).

        ``rotary`` are cosines and sines (N, pairs) by which queries and keys rotate, in self-attention.
        """
        q = self.norm_q(linear(self.to_q, x)).unflatten(-1, self.heads)
        k, v = (part.unflatten(-1, self.heads) for part in (keys, values))
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        return linear(self.to_out[0], attend(q, k, v))  # type: ignore[arg-type]


class TextKeys(nn.Module):
    """A block's ``text`` stage: the keys and values of its cross attention, which are the same in all calls.

    The keys are normalised over all heads together.
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.to_k, self.to_v = (nn.Linear(config.width, config.width) for _ in range(2))
        self.norm_k = RMSNorm(config.width, config.eps)

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of ``text``; each is (B, L, D)."""
        return self.norm_k(linear(self.to_k, text)), linear(self.to_v, text)

    def flops(self) -> tuple[Term, ...]:
        return total(layers(self, TEXT))


class SelfAttention(CrossAttention):
    """Attention of tokens to one another, with keys that are normalised as the queries are."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__(config)
        self.to_k, self.to_v = (nn.Linear(config.width, config.width) for _ in range(2))
        self.norm_k = RMSNorm(config.width, config.eps)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        """Return the attention (B, N, D) of ``x`` (B, N, D); ``rotary`` are cosines and sines (N, pairs)."""
        return super().forward(x, self.norm_k(linear(self.to_k, x)), linear(self.to_v, x), rotary)


class Block(ResidualBlock):
    """A block, or one of its parts: gated attention among all tokens, cross attention, and a gated MLP.

    The block takes hidden (B, T, S, D); modulation (B, 6, D) float32, or (B, T, 6, D) where each frame has its own,
    from ``embed``; rotary_frames (T, 2, pairs) and rotary_tokens (S, 2, pairs) float32, from ``positions``; and
    text_keys and text_values (B, L, D), from the block's own ``text`` stage, all of which are attended to.
    """

    CONDITIONS: Mapping[str, tuple[str, ...]] = {
        "attn": ("modulation", "rotary_frames", "rotary_tokens"),
        "cross": TEXT_KEYS,
        "mlp": ("modulation",),
    }
    PARTS = tuple(CONDITIONS)

    def __init__(self, config: WanConfig, parts: Parts = PARTS, sites: tuple[str, ...] = ()) -> None:
        super().__init__(self.CONDITIONS, parts, sites)
        self.config = config
        if "modulation" in self.conditions:
            self.scale_shift_table = nn.Parameter(torch.zeros(1, 6, config.width))
        if "attn" in parts:
            self.attn1 = SelfAttention(config)
        if "cross" in parts:
            self.attn2 = CrossAttention(config)
            if config.cross_attn_norm:
                self.norm2 = nn.LayerNorm(config.width, config.eps)
        if "mlp" in parts:
            self.ffn = FeedForward(config.width, config.ffn_dim)

    def residual(self, part: str, hidden: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        if part == "cross":
            tokens = hidden.flatten(1, 2)
            if self.config.cross_attn_norm:
                tokens = self.norm2(tokens.float()).to(tokens.dtype)
            cross: Tensor = self.attn2(tokens, *(given[name] for name in TEXT_KEYS)).view(hidden.shape)
            return cross
        table = adaln_single(self.scale_shift_table, given["modulation"])
        shift, scale, gate = table[:3] if part == "attn" else table[3:]
        modulated = modulate(hidden, shift, scale, self.config.eps)
        if part == "mlp":
            return gate * self.ffn(modulated)  # type: ignore[no-any-return]
        tokens = modulated.flatten(1, 2)
        attended = self.attn1(tokens, self._rotary(given["rotary_frames"], given["rotary_tokens"]))
        return gate * attended.view(hidden.shape)  # type: ignore[no-any-return]

    def _rotary(self, frames: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and the sines (T * S, pairs) of all tokens."""
        by_frame = frames[:, None].expand(-1, tokens.shape[0], -1, -1)
        by_token = tokens[None].expand(frames.shape[0], -1, -1, -1)
        cosines, sines = torch.cat([by_frame, by_token], dim=-1).flatten(0, 1).unbind(1)
        return cosines, sines

    def part_axes(self, part: str) -> tuple[str, ...]:
        return () if part == "attn" else EVERYWHERE

    def part_flops(self, part: str) -> tuple[Term, ...]:
        width = self.config.width
        if part == "mlp":
            return (layers(self.ffn, TOKENS),)
        if part == "attn":
            return total(layers(self.attn1, TOKENS), attention(TOKENS, TOKENS[1:], width))
        return total(layers(self.attn2, TOKENS), attention(TOKENS, "text", width))


class Final(nn.Module):
    """The ``final`` stage: tokens -> prediction."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, config.width))
        self.proj_out = nn.Linear(config.width, math.prod(config.patch_size) * config.out_channels)

    def forward(self, hidden: Tensor, time: Tensor, latents: Tensor) -> Tensor:
        """Return the prediction (B, C, T, H, W) float32: the velocity towards noise.

        Args:
            hidden: hidden state (B, T', S, D).
            time: modulation (B, D) of this layer, or (B, T', D) where each frame has its own.
            latents: latents (B, C, T, H, W), of which only the shape is used.
        """
        patch_t, patch_h, patch_w = self.config.patch_size
        rows, columns = latents.shape[3] // patch_h, latents.shape[4] // patch_w
        of_frames = time[:, None] if time.ndim == 2 else time
        shift, scale = (self.scale_shift_table.float()[:, None] + of_frames[:, :, None])[:, :, :, None].unbind(2)
        out = self.proj_out(modulate(hidden, shift, scale, self.config.eps)).float()
        out = out.unflatten(2, (rows, columns)).unflatten(-1, (patch_t, patch_h, patch_w, self.config.out_channels))
        out = out.permute(0, 7, 1, 4, 2, 5, 3, 6)  # (B, C, T', patch_t, H', patch_h, W', patch_w)
        prediction: Tensor = out.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return prediction

    def flops(self) -> tuple[Term, ...]:
        return total(layers(self, TOKENS))
