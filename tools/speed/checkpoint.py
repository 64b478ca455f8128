"""A random STDiT3 checkpoint of any size."""

from pathlib import Path

import torch
from torch import Tensor

from adacache_export.families.open_sora import expected
from adacache_export.models.stdit3 import OpenSoraConfig
from adacache_export.weights_file import write_weights
from tools.speed.size import CHANNELS, PATCH, Size


def config_of(size: Size) -> OpenSoraConfig:
    return OpenSoraConfig(
        in_channels=CHANNELS,
        patch_size=(1, PATCH, PATCH),
        hidden_size=size.width,
        depth=size.depth,
        num_heads=size.heads,
        caption_channels=size.caption_width,
    )


def write_checkpoint(path: Path, config: OpenSoraConfig) -> int:
    """Writes random weights in float32, one tensor at a time; returns the size of the file in bytes.

    Matrices keep the size of what they multiply, so that hidden states stay finite through all blocks.
    """
    shapes = {name: shape for name, shape in expected(config).items() if not name.startswith("rope.")}
    generator = torch.Generator().manual_seed(0)

    def draw(name: str) -> Tensor:
        shape = shapes[name]
        if name.endswith("_norm.weight"):
            return torch.ones(shape)
        inputs = int(torch.Size(shape[1:]).numel())
        return torch.randn(shape, generator=generator) * (0.5 * inputs**-0.5 if len(shape) > 1 else 0.02)

    write_weights(path, shapes, dict.fromkeys(shapes, "float32"), draw)
    return path.stat().st_size
