"""Write random checkpoints: STDiT3's of any size, any family's of the published size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adacache_export.families.latte import family as latte
from adacache_export.families.latte_t2v.transformer import LatteT2VConfig
from adacache_export.families.open_sora import family as open_sora
from adacache_export.families.open_sora.family import expected
from adacache_export.families.open_sora.transformer import OpenSoraConfig
from adacache_export.families.open_sora_plan import family as open_sora_plan
from adacache_export.families.registry import FAMILIES
from adacache_export.writing.weights_file import write_weights
from tools.speed.size import CHANNELS, PATCH, Size

PUBLISHED: Mapping[str, Any] = {
    open_sora.NAME: OpenSoraConfig(),
    latte.NAME: LatteT2VConfig(),
    open_sora_plan.NAME: open_sora_plan.RELEASED,
}


def config_of(size: Size) -> OpenSoraConfig:
    return OpenSoraConfig(
        in_channels=CHANNELS,
        patch_size=(1, PATCH, PATCH),
        hidden_size=size.width,
        depth=size.depth,
        num_heads=size.heads,
        caption_channels=size.caption_width,
    )


def published_shapes(family: str) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a family's released model.

    The exporter takes a checkpoint without a config.json for that model.
    """
    return FAMILIES[family].expected(PUBLISHED[family])


def write_checkpoint(path: Path, config: OpenSoraConfig) -> int:
    """Write a random STDiT3, as :func:`write_random`."""
    return write_random(path, expected(config))


def write_random(path: Path, tensors: Mapping[str, tuple[int, ...]]) -> int:
    """Write random weights in float32, one tensor at a time; return the size of the file in bytes.

    Matrices keep the scale of their inputs, so that hidden states stay finite through all blocks.
    """
    shapes = {name: shape for name, shape in tensors.items() if not name.startswith("rope.")}
    generator = torch.Generator().manual_seed(0)

    def draw(name: str) -> Tensor:
        shape = shapes[name]
        if name.endswith("_norm.weight"):
            return torch.ones(shape)
        inputs = int(torch.Size(shape[1:]).numel())
        return torch.randn(shape, generator=generator) * (0.5 * inputs**-0.5 if len(shape) > 1 else 0.02)

    write_weights(path, shapes, dict.fromkeys(shapes, "float32"), draw)
    return path.stat().st_size
