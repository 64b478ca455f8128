"""The encoder half of T5 (1.0, 1.1, mT5), written for export.

transformers' own module reshapes attention in a way that torch.onnx cannot trace with a dynamic length (transformers 5,
torch 2.13), and leaves the logarithm behind the position buckets to the engine, where its last bit decides a bucket.

Weights may be of several dtypes: a product is computed in that of its weights, and what blocks exchange is in that of
the norms and of the position bias.

Source: Raffel et al., arXiv 1910.10683; T5 1.1: Shazeer, arXiv 2002.05202. Parameters have transformers' names.
Axes: B prompts, L tokens, D width, h heads, K width of a head.
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
from adacache_export.checkpoint.config import settled

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {  # feed_forward_proj -> f
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "gated-relu": F.relu,
    "gated-gelu": partial(F.gelu, approximate="tanh"),
    "gated-silu": F.silu,
}
GATED = "gated-"
BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"  # by distance, of all blocks
# beside float16 weights: the feed-forward of T5 1.1 XXL, and so the sum that blocks add to, goes beyond 65504.
# transformers keeps "wo" in float32, too
FLOAT32_IN_FLOAT16 = ("norm.weight", "relative_attention_bias.weight", "wo.weight")
DEFAULTS: Mapping[str, Mapping[str, str]] = {  # by model type, for fields that a config leaves out
    "t5": {"feed_forward_proj": "relu"},
    "mt5": {"feed_forward_proj": "gated-gelu"},
}


class T5Config(BaseModel):
    """The fields of T5's ``config.json`` that change the encoder's mathematics, under their published names."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

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
        """From the content of ``config.json``; other fields are ignored.

        Raises:
            CheckpointError: it is not a T5's, or lists all fields that are missing or invalid.
        """
        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in DEFAULTS:
            raise CheckpointError(f"model_type is {kind!r}; expected a T5 encoder: {', '.join(DEFAULTS)}")
        given = {name: value for name, value in config.items() if value is not None}
        made = settled(cls, {**DEFAULTS[kind], **given})
        if made.relative_attention_max_distance <= made.relative_attention_num_buckets // 4:
            raise CheckpointError("relative_attention_max_distance: expected more than a quarter of the buckets")
        return made


def position_buckets(config: T5Config) -> tuple[int, ...]:
    """Bucket of each distance 0, 1, ..., max_distance, where the last stands for all beyond.

    Half of a direction's buckets are one distance each, the others grow as its logarithm (arXiv 1910.10683, 2.1).
    """
    count = config.relative_attention_num_buckets // 2  # of one direction
    exact, farthest = count // 2, config.relative_attention_max_distance
    # float32 in the order of the original: its rounding belongs to the trained model
    distance = torch.arange(farthest + 1, dtype=torch.float32, device="cpu").clamp(min=exact)
    steps = torch.log(distance / exact) / math.log(farthest / exact) * (count - exact)
    wide = (exact + steps.long()).clamp(max=count - 1).tolist()
    return (*range(exact), *wide[exact:])


class SelfAttention(nn.Module):
    """Attention without scaling."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads = (config.num_heads, config.d_kv)
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """``x`` (B, L, D), ``bias`` (B, h, L, L) added to the scores -> (B, L, D)."""
        batch, length, _ = x.shape
        shape = (batch, length, *self.heads)
        x = x.to(self.q.weight.dtype)
        q, k, v = (project(x).view(shape).transpose(1, 2) for project in (self.q, self.k, self.v))
        # Written out: TensorRT has no float32 kernel for the one Attention node that the fused function becomes.
        weights = torch.softmax((q @ k.transpose(2, 3) + bias).float(), dim=-1).to(x.dtype)
        out: Tensor = self.o((weights @ v).transpose(1, 2).reshape(batch, length, -1))
        return out


class FeedForward(nn.Module):
    """wo(f(wi x)), or gated: wo(f(wi_0 x) * wi_1 x)."""

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
    """x + attention(norm(x))."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config)
        self.layer_norm = nn.RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = x + self.SelfAttention(self.layer_norm(x), bias)
        return out


class FeedForwardLayer(nn.Module):
    """x + feed-forward(norm(x))."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = FeedForward(config)  # its published name, whatever its activation
        self.layer_norm = nn.RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.DenseReluDense(self.layer_norm(x))
        return out


class Block(nn.Module):
    """Attention, then feed-forward."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config), FeedForwardLayer(config)])

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """``hidden`` (B, L, D), ``bias`` (B, h, L, L) added to the scores -> (B, L, D)."""
        attention, feed_forward = self.layer
        out: Tensor = feed_forward(attention(hidden, bias))
        return out


class Embed(nn.Module):
    """Token ids to hidden states and to what all blocks add to their scores."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.buckets = position_buckets(config)  # numbers, not a buffer: weights are all that a stage carries
        self.one_direction = config.relative_attention_num_buckets // 2
        # published as a part of the first block
        bias: nn.Module = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
        for name in reversed(BIAS.split(".")[1:]):
            bias = nn.ModuleDict({name: bias})
        self.encoder = bias

    def position_bias(self, length: int, device: torch.device) -> Tensor:
        """What a head adds to a score for the distance between two tokens: (1, h, L, L), row = the one that attends."""
        place = torch.arange(length, device=device)
        ahead = place[None, :] - place[:, None]
        buckets = torch.tensor(self.buckets, device=device)
        bucket = buckets[ahead.abs().clamp(max=len(self.buckets) - 1)] + (ahead > 0) * self.one_direction
        bias: Tensor = self.get_submodule(BIAS)(bucket)
        return bias.permute(2, 0, 1)[None]

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """``tokens`` (B, L) int64, ``mask`` (B, L) bool, True = a token -> hidden (B, L, D), bias (B, h, L, L)."""
        bias = self.position_bias(tokens.shape[1], tokens.device)
        # the lowest number and not -inf: a row without any token then has some value, and not NaN
        padding = torch.where(mask, 0.0, torch.finfo(bias.dtype).min).to(bias.dtype)[:, None, None, :]
        return self.shared(tokens).to(bias.dtype), bias + padding


class Final(nn.Module):
    """The norm behind the last block; float32 whatever the weights are."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.final_layer_norm = nn.RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D) float32: the last hidden state, padding not zeroed."""
        out: Tensor = self.final_layer_norm(hidden).float()
        return out


class T5Encoder(nn.Module):
    """The whole encoder in one: what bundles had before its blocks were graphs of their own."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        embed = Embed(config)
        self.shared, self.encoder = embed.shared, Final(config)
        self.encoder.block = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        place, _, name = BIAS.rpartition(".")
        self.get_submodule(place).add_module(name, embed.get_submodule(BIAS))
        self.__dict__["embed"] = embed  # not registered: its parameters are here by their names

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """As :class:`Embed` takes them -> as :class:`Final` gives them."""
        hidden, bias = self.__dict__["embed"](tokens, mask)
        for block in self.encoder.get_submodule("block").children():
            hidden = block(hidden, bias)
        out: Tensor = self.encoder(hidden)
        return out
