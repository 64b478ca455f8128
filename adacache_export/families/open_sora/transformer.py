"""STDiT3, Open-Sora 1.2's transformer, as one module for each stage.

Source: hpcaitech/Open-Sora v1.2.0, ``opensora/models/stdit/stdit3.py``; Open-Sora report, arXiv 2412.20404.
Axes as in :mod:`adacache_export.families.layers`; H x W is the latent size, C its channels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adacache_engines.bundle.manifest import Term
from adacache_export.costs import SAMPLES, TEXT, TOKENS, attention, layers, total
from adacache_export.families.layers import (
    Mlp,
    RMSNorm,
    ScalarEmbedder,
    adaln_single,
    add_residual,
    attend,
    indices,
    linear,
    modulate,
    rotate,
    rotations,
    sincos_2d,
)
from adacache_export.families.residual_block import ATTENTION_AXES, EVERYWHERE, ModulatedInput, Parts, ResidualBlock


@dataclass(frozen=True)
class OpenSoraConfig:
    """The fields of STDiT3's ``config.json`` that change its mathematics, under their published names."""

    input_sq_size: int = 512  # pixels
    in_channels: int = 4
    patch_size: tuple[int, int, int] = (1, 2, 2)  # (frames, rows, columns) of the latent
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    pred_sigma: bool = True
    caption_channels: int = 4096
    model_max_length: int = 300

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.pred_sigma else 1)

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_heads


class CaptionEmbedder(nn.Module):
    """The ``text`` stage: encoder states (B, L, caption_channels) -> (B, L, D)."""

    def __init__(self, config: OpenSoraConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.y_proj = Mlp(config.caption_channels, width, width)

    def forward(self, captions: Tensor) -> Tensor:
        out: Tensor = self.y_proj(captions.to(self.y_proj.fc1.weight.dtype))
        return out

    def flops(self) -> tuple[Term, ...]:
        return total(layers(self.y_proj, TEXT))


class Positions(nn.Module):
    """The ``positions`` stage: embeddings of a frame's tokens, and rotations of temporal queries and keys."""

    def __init__(self, config: OpenSoraConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, latents: Tensor, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Return the position tables of one size.

        Args:
            latents: latents (B, C, T, H, W), of which only the shape is used.
            height, width: requested size in pixels, each (1,) float32.

        Returns:
            embeddings by token (S, D), and cosines and sines by frame (T', 2, K / 2), float32.
        """
        frames, rows, columns = (
            (size + patch - 1) // patch for size, patch in zip(latents.shape[2:], self.config.patch_size, strict=True)
        )
        # float32 is enough to round sqrt(tokens): an integer's root is never within 1e-7 of a half for any size in use
        base = torch.round(torch.sqrt(torch.scalar_tensor(rows * columns, dtype=torch.float32)))
        scale = torch.sqrt(height.float() * width.float()) / self.config.input_sq_size
        row, column = (indices(number, latents) / scale * base / number for number in (rows, columns))
        by_token = sincos_2d(row, column, self.config.hidden_size)
        return by_token, rotations(indices(frames, latents), self.config.head_width // 2)


class Embed(nn.Module):
    """The ``embed`` stage: latents and conditions -> tokens, and modulation of the blocks and of the final layer.

    If it is ``probed``, it also returns the modulated input of the first block. If it is ``conditioned``, some frames
    may be given and are to be kept: these are modulated as at timestep 0.
    """

    def __init__(self, config: OpenSoraConfig, probed: bool = False, conditioned: bool = False) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.x_embedder = nn.ModuleDict(
            {"proj": nn.Conv3d(config.in_channels, width, config.patch_size, stride=config.patch_size)}
        )
        self.t_embedder = ScalarEmbedder(width)
        self.fps_embedder = ScalarEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        if probed:
            self.spatial_blocks = nn.ModuleList([ModulatedInput(width)])
        self.probed, self.conditioned = probed, conditioned

    def patches(self, latents: Tensor) -> Tensor:
        """Turn (B, C, T, H, W), padded with zeros at the far ends to whole patches, into (B, D, T', H', W')."""
        proj = self.x_embedder["proj"]
        pad: list[int] = []
        for size, patch in zip(reversed(latents.shape[2:]), reversed(self.config.patch_size), strict=True):
            pad += [0, -size % patch]
        out: Tensor = proj(F.pad(latents.to(next(proj.parameters()).dtype), pad))
        return out

    def modulation(self, time: Tensor) -> Tensor:
        """Return the modulation of the blocks (B, 6, D) float32, from the embedding ``time`` (B, D)."""
        of_blocks: Tensor = self.t_block(time).unflatten(1, (6, self.config.hidden_size)).float()
        return of_blocks

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        fps: Tensor,
        position_tokens: Tensor,
        x_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Embed the latents and the conditions.

        Args:
            latents: latents (B, C, T, H, W) float32.
            timestep: timesteps (B,) float32; 1000 is pure noise.
            fps: frames per second (B,) float32.
            position_tokens: position embeddings (S, D) float32 of a frame's tokens.
            x_mask: mask (B, T') bool, False = a frame that is kept; None unless conditioned.

        Returns:
            hidden (B, T', S, D); modulation (B, 6, D) float32, or (B, T', 6, D) if conditioned; time (B, D) float32; if
            conditioned, the time of timestep 0 (B, D) float32; and, if probed, the modulated input of the first block
            (B, T', S, D).
        """
        tokens = self.patches(latents).flatten(3).permute(0, 2, 3, 1)
        hidden = add_residual(tokens, position_tokens)
        of_fps = self.fps_embedder(fps)
        times = [self.t_embedder(timestep) + of_fps]
        modulation = self.modulation(times[0])
        if self.conditioned:
            assert x_mask is not None
            times.append(self.t_embedder(torch.zeros_like(timestep)) + of_fps)
            kept = self.modulation(times[1])
            modulation = torch.where(x_mask[:, :, None, None], modulation[:, None], kept[:, None])
        given = (hidden, modulation, *(time.float() for time in times))
        return (*given, self.spatial_blocks[0](hidden, modulation)) if self.probed else given

    def flops(self) -> tuple[Term, ...]:
        of_timesteps = (self.t_embedder, self.t_block) * (2 if self.conditioned else 1)
        of_numbers = (*of_timesteps, self.fps_embedder)
        return total(layers(self.x_embedder, TOKENS), *(layers(module, SAMPLES) for module in of_numbers))


class SelfAttention(nn.Module):
    """Self-attention among the tokens of a frame (spatial), or among the frames at a position (temporal, rotary)."""

    def __init__(self, config: OpenSoraConfig, kind: str) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.temporal = config.num_heads, kind == "temporal"
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(config.head_width)
        self.k_norm = RMSNorm(config.head_width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        """Return the self-attention (B, T, S, D) of ``x`` (B, T, S, D).

        ``rotary`` are cosines and sines (T, 2, K / 2) by which queries and keys of temporal attention rotate.
        """
        x = x.transpose(1, 2) if self.temporal else x
        qkv = linear(self.qkv, x).unflatten(-1, (3, self.heads, x.shape[-1] // self.heads))
        q, k, v = qkv.unbind(-3)  # each (B, sequences, length, h, K)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            cosines, sines = rotary.unbind(1)
            q, k = rotate(q, cosines, sines), rotate(k, cosines, sines)
        out = attend(*(part.flatten(0, 1) for part in (q, k, v)))
        projected = linear(self.proj, out.unflatten(0, x.shape[:2]))
        return projected.transpose(1, 2) if self.temporal else projected

    def flops(self) -> tuple[Term, ...]:
        keys = "patch_frames" if self.temporal else "tokens"
        return total(layers(self, TOKENS), attention(TOKENS, keys, self.proj.in_features))


class CrossAttention(nn.Module):
    """Attention of every token to the text of its own sample."""

    def __init__(self, config: OpenSoraConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the attention (B, T, S, D) of ``x`` (B, T, S, D) to ``text`` (B, L, D).

        ``text_mask`` is (B, L) bool, True = attend.
        """
        heads = (self.heads, x.shape[-1] // self.heads)
        q = linear(self.q_linear, x.flatten(1, 2)).unflatten(-1, heads)
        k, v = linear(self.kv_linear, text).unflatten(-1, (2, *heads)).unbind(2)
        mask = text_mask[:, None, None, :].expand(-1, 1, q.shape[1], -1)
        return linear(self.proj, attend(q, k, v, mask)).view(x.shape)

    def flops(self) -> tuple[Term, ...]:
        linears = (layers(self.q_linear, TOKENS), layers(self.kv_linear, TEXT), layers(self.proj, TOKENS))
        return total(*linears, attention(TOKENS, "text", self.proj.in_features))


class Block(ResidualBlock):
    """A block, or one of its parts: gated self-attention, cross attention, and a gated MLP.

    The ``kind`` of the self-attention is spatial or temporal. The block takes hidden (B, T, S, D); modulation (B, 6, D)
    float32, or (B, T, 6, D) where each frame has its own, from ``embed``; where it is temporal, rotary_frames
    (T, 2, K / 2) float32, from ``positions``; text (B, L, D), from ``text``; text_mask (B, L) bool, True = attend.
    """

    CONDITIONS: Mapping[str, tuple[str, ...]] = {
        "attn": ("modulation",),
        "cross": ("text", "text_mask"),
        "mlp": ("modulation",),
    }
    PARTS = tuple(CONDITIONS)

    def __init__(self, config: OpenSoraConfig, kind: str, parts: Parts = PARTS, sites: tuple[str, ...] = ()) -> None:
        rotary = {"attn": ("modulation", "rotary_frames")} if kind == "temporal" else {}
        super().__init__({**self.CONDITIONS, **rotary}, parts, sites)
        self.kind, width = kind, config.hidden_size
        if "modulation" in self.conditions:
            self.scale_shift_table = nn.Parameter(torch.zeros(6, width))
        if "attn" in parts:
            self.attn = SelfAttention(config, kind)
        if "cross" in parts:
            self.cross_attn = CrossAttention(config)
        if "mlp" in parts:
            self.mlp = Mlp(width, int(width * config.mlp_ratio), width)

    def residual(self, part: str, hidden: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        if part == "cross":
            return self.cross_attn(hidden, given["text"], given["text_mask"])  # type: ignore[no-any-return]
        table = adaln_single(self.scale_shift_table, given["modulation"])
        shift, scale, gate = table[:3] if part == "attn" else table[3:]
        modulated = modulate(hidden, shift, scale)
        out = self.mlp(modulated) if part == "mlp" else self.attn(modulated, given.get("rotary_frames"))
        return gate * out  # type: ignore[no-any-return]

    def part_axes(self, part: str) -> tuple[str, ...]:
        return ATTENTION_AXES[self.kind] if part == "attn" else EVERYWHERE

    def part_flops(self, part: str) -> tuple[Term, ...]:
        if part == "mlp":
            return (layers(self.mlp, TOKENS),)
        return self.attn.flops() if part == "attn" else self.cross_attn.flops()


class Final(nn.Module):
    """The ``final`` stage: tokens -> prediction."""

    def __init__(self, config: OpenSoraConfig) -> None:
        super().__init__()
        self.config = config
        self.scale_shift_table = nn.Parameter(torch.zeros(2, config.hidden_size))
        self.linear = nn.Linear(config.hidden_size, math.prod(config.patch_size) * config.out_channels)

    def modulate(self, hidden: Tensor, time: Tensor) -> Tensor:
        """Modulate ``hidden`` (B, T', S, D) by ``time`` (B, D); return (B, T', S, D)."""
        shift, scale = (self.scale_shift_table.float()[None] + time[:, None])[:, :, None, None, :].unbind(1)
        return modulate(hidden, shift, scale)

    def forward(
        self,
        hidden: Tensor,
        time: Tensor,
        latents: Tensor,
        time_of_kept: Tensor | None = None,
        x_mask: Tensor | None = None,
    ) -> Tensor:
        """Turn the hidden state into the prediction.

        Args:
            hidden: hidden state (B, T', S, D).
            time: modulation (B, D) of this layer.
            latents: latents (B, C, T, H, W), of which only the shape is used.
            time_of_kept: modulation (B, D) of this layer at timestep 0; None unless conditioned.
            x_mask: mask (B, T') bool, False = a frame that is kept; None unless conditioned. As in the original, kept
                frames are modulated twice; samplers ignore the prediction for them.

        Returns:
            the prediction (B, C_out, T, H, W) float32, with the velocity in the first C channels.
        """
        _, _, frames, height, width = latents.shape
        patch_t, patch_h, patch_w = self.config.patch_size
        modulated = self.modulate(hidden, time)
        if x_mask is not None and time_of_kept is not None:
            twice = self.modulate(modulated, time_of_kept)
            modulated = torch.where(x_mask[:, :, None, None], modulated, twice)
        out = self.linear(modulated).float()
        rows, columns = (height + patch_h - 1) // patch_h, (width + patch_w - 1) // patch_w
        out = out.unflatten(2, (rows, columns)).unflatten(-1, (patch_t, patch_h, patch_w, self.config.out_channels))
        out = out.permute(0, 7, 1, 4, 2, 5, 3, 6)  # (B, C_out, T', patch_t, H', patch_h, W', patch_w)
        out = out.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        cropped: Tensor = out[:, :, :frames, :height, :width]
        return cropped

    def flops(self) -> tuple[Term, ...]:
        return total(layers(self, TOKENS))
