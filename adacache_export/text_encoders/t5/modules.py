"""Modules of the encoder half of T5 (1.0, 1.1, mT5), written for export.

transformers' own module reshapes attention in a way that torch.onnx cannot trace with a dynamic length (transformers 5,
torch 2.13), and leaves the logarithm behind the position buckets to the engine, where its last bit decides a bucket.

Weights may have several dtypes: a product is computed in the dtype of its weights, and what blocks exchange has the
dtype of the norms and of the position bias.

Source: Raffel et al., arXiv 1910.10683; T5 1.1: Shazeer, arXiv 2002.05202. Parameters have transformers' names.
Axes: B prompts, L tokens, D width, h heads.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint.config import parsed_config

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {  # feed_forward_proj -> f
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "gated-relu": F.relu,
    "gated-gelu": partial(F.gelu, approximate="tanh"),
    "gated-silu": F.silu,
}
GATED = "gated-"
BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"  # by distance; all blocks share it
# Endings of the weights that stay float32 beside float16 ones: the feed-forward of T5 1.1 XXL, and so the sum that
# blocks add to, goes beyond 65504. transformers keeps "wo" in float32, too
FLOAT32_IN_FLOAT16 = ("norm.weight", "relative_attention_bias.weight", "wo.weight")
DEFAULTS: Mapping[str, Mapping[str, str]] = {  # by model type, for fields that a config.json leaves out
    "t5": {"feed_forward_proj": "relu"},
    "mt5": {"feed_forward_proj": "gated-gelu"},
    "umt5": {"feed_forward_proj": "gated-gelu"},
}


class T5Config(BaseModel):
    """The fields of a T5's ``config.json`` that change the encoder's mathematics, under their published names."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    model_type: Literal["t5", "mt5", "umt5"]
    vocab_size: PositiveInt
    d_model: PositiveInt
    d_kv: PositiveInt
    d_ff: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    feed_forward_proj: Literal["relu", "gelu", "silu", "gated-relu", "gated-gelu", "gated-silu"]
    relative_attention_num_buckets: Annotated[int, Field(ge=4, multiple_of=2)] = 32  # of both directions
    relative_attention_max_distance: PositiveInt = 128  # tokens
    layer_norm_epsilon: PositiveFloat = 1e-6

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "T5Config":
        """Return the configuration that the content of a ``config.json`` describes; other fields are ignored.

        Raises:
            CheckpointError: fields are missing or invalid; lists all of them.
        """
        defaults = DEFAULTS.get(str(config.get("model_type")), {})
        given = {name: value for name, value in config.items() if value is not None}
        made = parsed_config(cls, {**defaults, **given})
        if made.relative_attention_max_distance <= made.relative_attention_num_buckets // 4:
            raise CheckpointError("relative_attention_max_distance: expected more than a quarter of the buckets")
        return made


def position_buckets(config: T5Config) -> tuple[int, ...]:
    """Return the bucket of each distance 0, 1, ..., max_distance, where the last one stands for all distances beyond.

    Half of a direction's buckets hold one distance each, the others grow as its logarithm (arXiv 1910.10683, 2.1).
    """
    count = config.relative_attention_num_buckets // 2  # buckets of one direction
    exact, farthest = count // 2, config.relative_attention_max_distance
    # float32 in the order of the original: its rounding belongs to the trained model
    distance = torch.arange(farthest + 1, dtype=torch.float32, device="cpu").clamp(min=exact)
    steps = torch.log(distance / exact) / math.log(farthest / exact) * (count - exact)
    wide = (exact + steps.long()).clamp(max=count - 1).tolist()
    return (*range(exact), *wide[exact:])


class Distances(nn.Module):
    """The buckets of the distances between tokens, by which a table says what each head adds to a score."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.buckets = position_buckets(config)  # numbers, not a buffer: weights are all that a stage carries
        self.one_direction = config.relative_attention_num_buckets // 2

    def forward(self, table: nn.Module, length: int, device: torch.device) -> Tensor:
        """Return the bias (1, h, L, L) of scores, from rows to columns; ``table`` is an embedding (buckets, h)."""
        place = torch.arange(length, device=device)
        ahead = place[None, :] - place[:, None]
        buckets = torch.tensor(self.buckets, device=device)
        bucket = buckets[ahead.abs().clamp(max=len(self.buckets) - 1)] + (ahead > 0) * self.one_direction
        bias: Tensor = table(bucket)
        return bias.permute(2, 0, 1)[None]


def padding_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what hides padding when it is added to scores, (B, 1, 1, L), from a mask (B, L) where True is a token.

    It is the lowest number and not -inf: a row without any token then has some value, and not NaN.
    """
    return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)[:, None, None, :]


class SelfAttention(nn.Module):
    """Self-attention whose scores are not scaled."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads = (config.num_heads, config.d_kv)
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Map ``x`` (B, L, D), and ``bias`` (B, h, L, L) that is added to the scores, to (B, L, D)."""
        batch, length, _ = x.shape
        shape = (batch, length, *self.heads)
        x = x.to(self.q.weight.dtype)
        q, k, v = (project(x).view(shape).transpose(1, 2) for project in (self.q, self.k, self.v))
        # Written out: TensorRT has no float32 kernel for the one Attention node that the fused function becomes.
        weights = torch.softmax((q @ k.transpose(2, 3) + bias).float(), dim=-1).to(x.dtype)
        out: Tensor = self.o((weights @ v).transpose(1, 2).reshape(batch, length, -1))
        return out


class FeedForward(nn.Module):
    """The feed-forward layer wo(f(wi x)), or its gated form wo(f(wi_0 x) * wi_1 x)."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gated = config.feed_forward_proj.startswith(GATED)
        self.activation = ACTIVATIONS[config.feed_forward_proj]
        if self.gated:
            self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
            self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        else:
            self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to((self.wi_0 if self.gated else self.wi).weight.dtype)
        inner = self.activation(self.wi_0(x) if self.gated else self.wi(x)).to(self.wo.weight.dtype)
        out: Tensor = self.wo(inner * self.wi_1(x) if self.gated else inner)
        return out


class AttentionLayer(nn.Module):
    """The residual layer x + attention(norm(x))."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config)
        self.layer_norm = nn.RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = x + self.SelfAttention(self.layer_norm(x), bias)
        return out


class FeedForwardLayer(nn.Module):
    """The residual layer x + feed_forward(norm(x))."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = FeedForward(config)  # its published name, whatever its activation
        self.layer_norm = nn.RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.DenseReluDense(self.layer_norm(x))
        return out


class Block(nn.Module):
    """A block of the encoder: attention, then feed-forward."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config), FeedForwardLayer(config)])

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Map ``hidden`` (B, L, D), and ``bias`` (B, h, L, L) that is added to the scores, to (B, L, D)."""
        attention, feed_forward = self.layer
        out: Tensor = feed_forward(attention(hidden, bias))
        return out


class Embed(nn.Module):
    """The stage before the first block: hidden states of tokens, and the bias that all blocks add to their scores."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.distances = Distances(config)
        # published as a part of the first block
        bias: nn.Module = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
        for name in reversed(BIAS.split(".")[1:]):
            bias = nn.ModuleDict({name: bias})
        self.encoder = bias

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens and a mask to hidden states (B, L, D) and the bias of scores (B, h, L, L).

        Args:
            tokens: (B, L) int64.
            mask: (B, L) bool, True = a token.
        """
        bias = self.distances(self.get_submodule(BIAS), tokens.shape[1], tokens.device)
        return self.shared(tokens).to(bias.dtype), bias + padding_bias(mask, bias.dtype)


class Final(nn.Module):
    """The norm behind the last block, whose result is float32 whatever the dtype of the weights."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.final_layer_norm = nn.RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, L, D) to the captions (B, L, D) float32; padding is not zeroed."""
        out: Tensor = self.final_layer_norm(hidden).float()
        return out
