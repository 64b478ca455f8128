"""Open-Sora 1.2 (STDiT3) checkpoints: how one is recognised, its configuration, and all of its tensors.

The family's module in the registry; the model itself is in :mod:`adacache_export.families.open_sora`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from adacache_engines.errors import CheckpointError
from adacache_export.families.config import count_blocks, settle
from adacache_export.families.open_sora import (
    BLOCK_KINDS,
    OpenSoraConfig,
    default_probe,
    guidance,
    latent_space,
    profiles,
    sampler,
    stages,
    text_rule,
)

__all__ = [
    "NAME",
    "OPTIONAL_KEYS",
    "SIGNATURE_KEYS",
    "config_from",
    "constants",
    "default_probe",
    "expected",
    "guidance",
    "latent_space",
    "profiles",
    "sampler",
    "stages",
    "text_rule",
]

Shape = tuple[int, ...]

NAME = "open-sora-1.2"
SIGNATURE_KEYS: tuple[str, ...] = (
    "fps_embedder.mlp.0.weight",
    "t_block.1.weight",
    "y_embedder.y_proj.fc1.weight",
    "spatial_blocks.0.scale_shift_table",
    "temporal_blocks.0.scale_shift_table",
)
ROPE = "rope.freqs"  # a constant that the published files carry along
OPTIONAL_KEYS: tuple[str, ...] = (ROPE,)

SINUSOID_WIDTH = 256  # of the embedding of a timestep or of fps
BLOCK_LISTS = tuple(f"{kind}_blocks" for kind in BLOCK_KINDS)
REFUSED = {
    "qk_norm": (False, "attention without normalised queries and keys is not supported"),
    "qk_norm_legacy": (True, "queries and keys rotated before they are normalised are not supported"),
    "skip_y_embedder": (True, "text that arrives already projected is not supported: the text stage projects it"),
}


def config_from(given: Mapping[str, Any] | None, shapes: Mapping[str, Shape]) -> OpenSoraConfig:
    """The configuration, from ``config.json`` where there is one and from the shapes of the tensors.

    Raises:
        CheckpointError: the two contradict each other, a value makes no sense, or the variant is not supported.
    """
    config = OpenSoraConfig(**settle(asdict(OpenSoraConfig()), given, _infer(given, shapes), REFUSED))
    if config.hidden_size % (2 * config.num_heads) or config.hidden_size % 4:
        raise CheckpointError(
            f"hidden_size {config.hidden_size} with num_heads {config.num_heads} is not possible; expected a multiple"
            " of 4 and of twice the heads: check that the checkpoint is Open-Sora's, and download it again"
        )
    return config


def _infer(given: Mapping[str, Any] | None, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The fields that the shapes determine. What a missing or odd tensor leaves open keeps its given or default value:
    the comparison of all tensors then names that tensor.
    """

    def axes(key: str, count: int) -> Shape:
        shape = shapes.get(key, ())
        return shape if len(shape) == count and all(shape) else (0,) * count

    def either(name: str, count: int) -> Shape:
        return max(axes(f"{blocks}.0.{name}", count) for blocks in BLOCK_LISTS)

    inferred: dict[str, Any] = {"depth": count_blocks(shapes, BLOCK_LISTS)}
    _, width = either("scale_shift_table", 2)
    if not width:
        return inferred
    patched, channels, *patch = axes("x_embedder.proj.weight", 5)
    rows, _ = axes("final_layer.linear.weight", 2)
    (head_width,) = either("attn.q_norm.weight", 1)
    mlp_rows, _ = either("mlp.fc1.weight", 2)
    inferred |= {
        "hidden_size": width,
        "caption_channels": axes("y_embedder.y_proj.fc1.weight", 2)[1],
        "model_max_length": axes("y_embedder.y_embedding", 2)[0],
        "num_heads": width // head_width if head_width and width % head_width == 0 else 0,
        "mlp_ratio": _ratio(mlp_rows, width, given),
    }
    if patched:
        inferred |= {"in_channels": channels, "patch_size": tuple(patch)}
        outputs = rows / (math.prod(patch) * channels)
        if outputs in (1, 2):
            inferred["pred_sigma"] = outputs == 2
    return {field: value for field, value in inferred.items() if value or value is False}


def _ratio(rows: int, width: int, given: Mapping[str, Any] | None) -> float:
    """The ratio of which ``int(width * ratio)`` is the number of rows: the given one where it is one of them."""
    ratio = (given or {}).get("mlp_ratio")
    if isinstance(ratio, int | float) and 0 < ratio < 1e9 and int(width * ratio) == rows:
        return float(ratio)
    exact = rows / width
    return exact if int(width * exact) == rows else math.nextafter(exact, math.inf)


def expected(config: OpenSoraConfig) -> dict[str, Shape]:
    """Name and shape of all tensors of a checkpoint, the optional one included."""
    width, captions = config.hidden_size, config.caption_channels
    rows = int(width * config.mlp_ratio)
    patch_values = math.prod(config.patch_size)

    def linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def embedder(name: str) -> dict[str, Shape]:
        return linear(f"{name}.mlp.0", SINUSOID_WIDTH, width) | linear(f"{name}.mlp.2", width, width)

    def block(name: str) -> dict[str, Shape]:
        return {
            f"{name}.scale_shift_table": (6, width),
            **linear(f"{name}.attn.qkv", width, 3 * width),
            f"{name}.attn.q_norm.weight": (config.head_width,),
            f"{name}.attn.k_norm.weight": (config.head_width,),
            **linear(f"{name}.attn.proj", width, width),
            **linear(f"{name}.cross_attn.q_linear", width, width),
            **linear(f"{name}.cross_attn.kv_linear", width, 2 * width),
            **linear(f"{name}.cross_attn.proj", width, width),
            **linear(f"{name}.mlp.fc1", width, rows),
            **linear(f"{name}.mlp.fc2", rows, width),
        }

    shapes: dict[str, Shape] = {
        ROPE: (config.head_width // 2,),
        "x_embedder.proj.weight": (width, config.in_channels, *config.patch_size),
        "x_embedder.proj.bias": (width,),
        **embedder("t_embedder"),
        **embedder("fps_embedder"),
        **linear("t_block.1", width, 6 * width),
        "y_embedder.y_embedding": (config.model_max_length, captions),  # the null caption of guidance
        **linear("y_embedder.y_proj.fc1", captions, width),
        **linear("y_embedder.y_proj.fc2", width, width),
        "final_layer.scale_shift_table": (2, width),
        **linear("final_layer.linear", width, patch_values * config.out_channels),
    }
    for index in range(config.depth):
        for blocks in BLOCK_LISTS:
            shapes |= block(f"{blocks}.{index}")
    return shapes


def constants(config: OpenSoraConfig) -> dict[str, Tensor]:
    """What a checkpoint may carry and the stages compute: the angles a frame by which temporal attention rotates."""
    pairs = torch.arange(config.head_width // 2, dtype=torch.float64)
    return {ROPE: 10000.0 ** (-2 * pairs / config.head_width)}
