"""What the blocks of a Wan transformer take beside the hidden state: positions, timesteps, text, and an image.

Source as of :mod:`adacache_export.families.wan.transformer`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adacache_engines.bundle.manifest import IMAGE, Term
from adacache_export.costs import TEXT, layers, total
from adacache_export.families.diffusers_layers import TimestepEmbedding
from adacache_export.families.layers import FREQUENCY_BASE, RMSNorm, linear
from adacache_export.families.wan.config import WanConfig

TEXT_KEYS = ("text_keys", "text_values")  # what a block's own text stage makes
IMAGE_KEYS = ("image_keys", "image_values")  # what a block's own image stage makes


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


class ImageProjection(nn.Module):
    """The ``image`` stage: states of an image (1, I, image_dim) -> (1, I, D), by LayerNorm, MLP, LayerNorm.

    The MLP is as wide as the states, and has the exact GELU.
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        assert config.image_dim is not None
        self.norm1, self.norm2 = nn.LayerNorm(config.image_dim), nn.LayerNorm(config.width)
        first, second = nn.Linear(config.image_dim, config.image_dim), nn.Linear(config.image_dim, config.width)
        self.ff = nn.ModuleDict({"net": nn.ModuleDict({"0": nn.ModuleDict({"proj": first}), "2": second})})

    def forward(self, image_states: Tensor) -> Tensor:
        first, second = self.get_submodule("ff.net.0.proj"), self.get_submodule("ff.net.2")
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        hidden = F.gelu(linear(first, self.norm1(image_states).to(first.weight.dtype)))
        projected: Tensor = self.norm2(linear(second, hidden).float())
        return projected.to(second.weight.dtype)

    def flops(self) -> tuple[Term, ...]:
        return total(layers(self, (IMAGE,)))


class ImageKeys(nn.Module):
    """A block's ``image`` stage: the keys and values of an image that its cross attention also meets.

    All samples and branches share them. The keys are normalised over all heads together.
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.add_k_proj, self.add_v_proj = (nn.Linear(config.width, config.width) for _ in range(2))
        self.norm_added_k = RMSNorm(config.width, config.eps)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of ``image``; each is (1, I, D)."""
        return self.norm_added_k(linear(self.add_k_proj, image)), linear(self.add_v_proj, image)

    def flops(self) -> tuple[Term, ...]:
        return total(layers(self, (IMAGE,)))
