"""Small checkpoints to open, and what is said about those that cannot be."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint import Checkpoint, open_checkpoint

SHAPE = (6, 10)
NAMES = tuple(f"blocks.{index}.weight" for index in range(4))
EXPECTED = dict.fromkeys(NAMES, SHAPE)


def make_tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(SHAPE, generator=generator) for name in NAMES}


def save(tree: object, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tree, path)
    else:
        torch.save(tree, path)
    return path


def assert_same(checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> None:
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensors[name], tensor), name


def refusal(path: Path, weights: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, weights)
    return str(caught.value)
