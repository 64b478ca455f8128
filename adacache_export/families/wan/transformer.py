"""The transformer of Wan 2.1 and 2.2, as one module for each stage.

Source: Wan-Video/Wan2.1, ``wan/modules/model.py``, and its port in diffusers, ``WanTransformer3DModel``, whose tensor
names are used here; Wan report, arXiv 2503.20314.
Axes as in :mod:`adacache_export.families.layers`; H x W is the latent size, C the latents' channels.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adacache_engines.bundle.manifest import IMAGE, Term
from adacache_export.costs import SAMPLES, TOKENS, attention, layers, total
from adacache_export.families.diffusers_layers import FeedForward
from adacache_export.families.layers import RMSNorm, adaln_single, attend, linear, modulate, rotate
from adacache_export.families.residual_block import EVERYWHERE, Parts, ResidualBlock
from adacache_export.families.wan.conditions import IMAGE_KEYS, TEXT_KEYS, ConditionEmbedder
from adacache_export.families.wan.config import WanConfig


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

    def forward(self, x: Tensor, *given: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the attention (B, N, D) of ``x`` (B, N, D) to keys and values.

        Args:
            x: tokens (B, N, D).
            given: keys, then values, each (B, L, D); then those of another source, to which there is an attention of
                its own with the same queries, and so on. The attentions are added.
            rotary: cosines and sines (N, pairs) by which queries and keys rotate, in self-attention.
        """
        q = self.norm_q(linear(self.to_q, x)).unflatten(-1, self.heads)
        if rotary is not None:
            q = rotate(q, *rotary)
        attended: list[Tensor] = []
        for keys, values in zip(given[::2], given[1::2], strict=True):
            k, v = (part.unflatten(-1, self.heads) for part in (keys, values))
            attended.append(attend(q, k if rotary is None else rotate(k, *rotary), v))
        return linear(self.to_out[0], sum(attended[1:], attended[0]))  # type: ignore[arg-type]


class SelfAttention(CrossAttention):
    """Attention of tokens to one another, with keys that are normalised as the queries are."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__(config)
        self.to_k, self.to_v = (nn.Linear(config.width, config.width) for _ in range(2))
        self.norm_k = RMSNorm(config.width, config.eps)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        """Return the attention (B, N, D) of ``x`` (B, N, D); ``rotary`` are cosines and sines (N, pairs)."""
        return super().forward(x, self.norm_k(linear(self.to_k, x)), linear(self.to_v, x), rotary=rotary)


class Block(ResidualBlock):
    """A block, or one of its parts: gated attention among all tokens, cross attention, and a gated MLP.

    The block takes hidden (B, T, S, D); modulation (B, 6, D) float32, or (B, T, 6, D) where each frame has its own,
    from ``embed``; rotary_frames (T, 2, pairs) and rotary_tokens (S, 2, pairs) float32, from ``positions``; text_keys
    and text_values (B, L, D), from the block's own ``text`` stage; and in a model of images image_keys and image_values
    (1, I, D), from its own ``image`` stage. All texts and images are attended to.
    """

    PARTS = ("attn", "cross", "mlp")

    def __init__(self, config: WanConfig, parts: Parts = PARTS, sites: tuple[str, ...] = ()) -> None:
        self.images = IMAGE_KEYS if config.image_dim else ()
        of_positions = ("rotary_frames", "rotary_tokens")
        conditions = {"attn": ("modulation", *of_positions), "cross": TEXT_KEYS + self.images, "mlp": ("modulation",)}
        super().__init__(conditions, parts, sites)
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
            texts = [given[name] for name in TEXT_KEYS]
            images = [given[name].expand(len(tokens), -1, -1) for name in self.images]
            cross: Tensor = self.attn2(tokens, *texts, *images).view(hidden.shape)
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
        met = ("text", IMAGE) if self.images else ("text",)
        return total(layers(self.attn2, TOKENS), *(attention(TOKENS, axis, width) for axis in met))


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
