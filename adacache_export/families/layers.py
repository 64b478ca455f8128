"""Layers that the DiT families share, written for export.

No layer has a data-dependent shape. Weights and matrix products use the precision of the weights;
normalisation statistics, softmax, modulation and residual sums are float32.

Axes: B batch (guidance branches included), T latent frames, S tokens of a frame, N = T * S,
L text tokens, D width, h heads, K = D / h.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6
FREQUENCY_BASE = 10000.0


def layer_norm(x: Tensor, eps: float = NORM_EPS) -> Tensor:
    """Normalise the last axis to mean 0 and variance 1, without affine parameters; return float32."""
    return F.layer_norm(x.float(), (x.shape[-1],), eps=eps)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float = NORM_EPS) -> Tensor:
    """Return adaLN, LN(x) * (1 + scale) + shift, in the precision of ``x`` (DiT, arXiv 2212.09748, section 3.2)."""
    return (layer_norm(x, eps) * (1.0 + scale) + shift).to(x.dtype)


def add_residual(x: Tensor, residual: Tensor) -> Tensor:
    """Return x + residual, added in float32, in the precision of ``x``."""
    return (x.float() + residual).to(x.dtype)


def sinusoid_frequencies(half: int) -> tuple[float, ...]:
    """Return the ``half`` frequencies of :func:`sinusoid`, falling geometrically from 1.

    They are numbers, not a tensor, because an exporter folds the exponential with another library's, and at timestep
    1000 a difference in the last bit moves the embedding by 6e-5.
    """
    index = torch.arange(half, dtype=torch.float32, device="cpu")
    return tuple(torch.exp(-math.log(FREQUENCY_BASE) * index / half).tolist())


def sinusoid(value: Tensor, frequencies: tuple[float, ...]) -> Tensor:
    """Embed numbers (B,) as (B, 2 * len(frequencies)), float32: all cosines, then all sines."""
    angle = value.float()[:, None] * torch.tensor(frequencies, dtype=torch.float32, device=value.device)
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)


def indices(number: int, like: Tensor) -> Tensor:
    """Return 0, 1, ..., number - 1 as (number,) float32, on the device of ``like``."""
    return torch.arange(number, dtype=torch.float32, device=like.device)


def sincos_1d(position: Tensor, width: int) -> Tensor:
    """Embed coordinates (n,) as (n, width), float32: all sines, then all cosines."""
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=position.device)
    angle = position[:, None] * torch.pow(FREQUENCY_BASE, -index / half)
    return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)


def sincos_2d(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """Embed the places of a grid, row by row, as (number of rows * number of columns, width), float32.

    The first half of the width embeds the place's column, the second half its row.

    Args:
        rows: coordinates of the rows (number of rows,).
        columns: coordinates of the columns (number of columns,).
        width: width of an embedding, a multiple of 4.
    """
    by_column = sincos_1d(columns, width // 2)[None].expand(rows.shape[0], -1, -1)
    by_row = sincos_1d(rows, width // 2)[:, None].expand(-1, columns.shape[0], -1)
    return torch.cat([by_column, by_row], dim=-1).flatten(0, 1)


def rotations(positions: Tensor, pairs: int) -> Tensor:
    """Return cosines and sines (n, 2, pairs) float32 by which pairs rotate at ``positions`` (n,), for :func:`rotate`.

    Pair i rotates by position * 10000^(-i / pairs) (RoPE, arXiv 2104.09864, eq. 15).
    """
    index = torch.arange(pairs, dtype=torch.float32, device=positions.device)
    angle = positions[:, None] * torch.pow(FREQUENCY_BASE, -index / pairs)
    return torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate interleaved pairs of ``x`` (..., n, h, K) by ``cosines`` and ``sines`` (n, K / 2), in float32.

    Source: RoPE, arXiv 2104.09864, eq. 34.
    """
    even, odd = x.float().unflatten(-1, (cosines.shape[-1], 2)).unbind(-1)
    cos, sin = cosines[:, None], sines[:, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the attention of ``q`` to ``k`` and ``v``, scaled by K^-0.5, with the heads joined: (n, queries, h * K).

    Args:
        q: queries (n, queries, h, K).
        k, v: keys and values (n, keys, h, K).
        mask: mask or bias, as :func:`torch.nn.functional.scaled_dot_product_attention` takes it.
    """
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)


def adaln_single(table: Tensor, modulation: Tensor) -> tuple[Tensor, ...]:
    """Return a block's modulation: its own table, added to the modulation that all blocks share.

    Source: adaLN-single, PixArt-alpha, arXiv 2310.00426, section 2.3.

    Args:
        table: the block's own table, (6, D) or (1, 6, D).
        modulation: modulation of all blocks, (B, 6, D), or (B, T, 6, D) where each frame has its own.

    Returns:
        shift, scale and gate of the attention, then of the MLP, float32: each (B, 1, 1, D), or (B, T, 1, D) where each
        frame has its own.
    """
    own = table.float() + modulation
    return own[:, :, :, None, :].unbind(2) if modulation.ndim == 4 else own[:, :, None, None, :].unbind(1)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply ``layer`` to the last axis of ``x`` (..., D), as a product of two matrices.

    Only for two matrices has ONNX an operator that adds the bias, too, and takes the weights as they are stored.
    """
    out: Tensor = layer(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
    return out


class RMSNorm(nn.Module):
    """RMSNorm, x / rms(x) * weight over the last axis; statistics in float32 (arXiv 1910.07467, eq. 4)."""

    def __init__(self, width: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        full = x.float()
        normal = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self.eps)
        return normal.to(x.dtype) * self.weight


class Mlp(nn.Module):
    """Two linear layers around the tanh form of GELU: fc2(GELU(fc1(x)))."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width_in, hidden)
        self.fc2 = nn.Linear(hidden, width_out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(x.flatten(0, -2)), approximate="tanh")
        out: Tensor = self.fc2(hidden).unflatten(0, x.shape[:-1])
        return out


class ScalarEmbedder(nn.Module):
    """Embedding of numbers (B,) as (B, D): their sinusoid, then Linear, SiLU, Linear."""

    SINUSOID_WIDTH = 256
    FREQUENCIES = sinusoid_frequencies(SINUSOID_WIDTH // 2)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.SINUSOID_WIDTH, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, value: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        out: Tensor = self.mlp(sinusoid(value, self.FREQUENCIES).to(dtype))
        return out
