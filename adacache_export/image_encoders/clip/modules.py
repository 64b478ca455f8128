"""Modules of CLIP's vision model, a ViT, one for each stage, under the names that parameters have in transformers.

Source: Radford et al., arXiv 2103.00020; transformers, ``CLIPVisionModel``. Axes: I states (one for the whole image,
then one for each patch), D width, h heads.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint.config import parsed_config
from adacache_export.families.layers import attend, linear


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {  # hidden_act -> f
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
}


class ClipVisionConfig(BaseModel):
    """The fields of a ``config.json`` that change the vision model's mathematics, under their published names."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    model_type: Literal["clip_vision_model"]
    hidden_size: PositiveInt = 768
    intermediate_size: PositiveInt = 3072
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    num_channels: Literal[3] = 3
    image_size: PositiveInt = 224  # pixels each way
    patch_size: PositiveInt = 32  # pixels each way
    hidden_act: Literal["gelu", "gelu_pytorch_tanh", "quick_gelu"] = "quick_gelu"
    layer_norm_eps: PositiveFloat = 1e-5

    @property
    def tokens(self) -> int:
        """Number of states of an image."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "ClipVisionConfig":
        """Return the configuration that the content of a ``config.json`` describes; other fields are ignored.

        Raises:
            CheckpointError: fields are invalid, or do not fit one another; lists all that are invalid.
        """
        made = parsed_config(cls, {name: value for name, value in config.items() if value is not None})
        if made.hidden_size % made.num_attention_heads:
            raise CheckpointError(
                f"hidden_size is {made.hidden_size}; expected a multiple of num_attention_heads,"
                f" {made.num_attention_heads}"
            )
        if made.patch_size > made.image_size:
            raise CheckpointError(f"patch_size is {made.patch_size}; expected at most image_size, {made.image_size}")
        return made


class Embeddings(nn.Module):
    """The parameters of :class:`Embed`."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(config.tokens, config.hidden_size)


class Embed(nn.Module):
    """The first stage: pixels to states, before any attention."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map an image (1, 3, side, side) to states (1, I, D)."""
        patches = self.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        states = torch.cat([self.embeddings.class_embedding[None, None], patches], dim=1)
        out: Tensor = self.pre_layrnorm(states + self.embeddings.position_embedding.weight)
        return out


class Attention(nn.Module):
    """Attention of all states to one another."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            linear(layer, x).unflatten(-1, (self.heads, -1)) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return linear(self.out_proj, attend(q, k, v))


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.fc2, self.activation(linear(self.fc1, x)))


class Layer(nn.Module):
    """A layer: attention and MLP, each behind a norm, and each added to the states."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(config.hidden_size, config.layer_norm_eps) for _ in range(2))
        self.self_attn, self.mlp = Attention(config), Mlp(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map states (1, I, D) to states."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        out: Tensor = hidden + self.mlp(self.layer_norm2(hidden))
        return out
