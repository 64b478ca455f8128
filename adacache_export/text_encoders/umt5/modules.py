"""Modules of the encoder half of UMT5 (Chung et al., arXiv 2304.09151), written for export.

UMT5 is T5 1.1 with a position bias of its own in each block. Parameters have transformers' names. Axes: B prompts,
L tokens, D width, h heads.
"""

import torch
from torch import Tensor, nn

from adacache_export.text_encoders.t5 import modules as t5
from adacache_export.text_encoders.t5.modules import Distances, T5Config, padding_bias


class SelfAttention(t5.SelfAttention):
    """Self-attention whose scores are not scaled, with a position bias."""

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
        self.distances = Distances(config)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """Map ``x`` (B, L, D), and ``padding`` (B, 1, 1, L) that is added to the scores, to (B, L, D)."""
        bias = self.distances(self.relative_attention_bias, x.shape[1], x.device)
        return super().forward(x, bias + padding)


class Block(t5.Block):
    """A block of the encoder: attention, then feed-forward."""

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        attention, _ = self.layer
        attention.SelfAttention = SelfAttention(config)


class Embed(nn.Module):
    """The stage before the first block: hidden states of tokens, and what hides the padding from all blocks.

    Args:
        config: configuration of the encoder.
        dtype: dtype of both.
    """

    def __init__(self, config: T5Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.dtype = dtype

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens and a mask to hidden states (B, L, D) and what is added to scores, (B, 1, 1, L).

        Args:
            tokens: (B, L) int64.
            mask: (B, L) bool, True = a token.
        """
        return self.shared(tokens).to(self.dtype), padding_bias(mask, self.dtype)
