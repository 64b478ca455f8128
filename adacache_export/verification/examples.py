"""Random inputs for stages, to trace and to verify them with."""

from collections.abc import Mapping

import torch
from torch import Tensor

from adacache_engines.bundle.tensors import INPUT_RANGES, TensorSpec
from adacache_export.writing.weights_file import TORCH_DTYPES


def example(spec: TensorSpec, sizes: Mapping[str, int], generator: torch.Generator | None = None) -> Tensor:
    """Return a random tensor for an input of a stage.

    Floating-point inputs get normal numbers, or numbers within the range of a condition; booleans are a mask that hides
    the end of every second row; integers count up from 0 along the last axis.

    Args:
        spec: name, dtype and axes of the input.
        sizes: sizes of the dynamic axes.
        generator: source of random numbers; None = torch's own.
    """
    shape = spec.shape(sizes)
    if spec.dtype == "bool":
        mask = torch.ones(shape, dtype=torch.bool)
        mask[::2, (shape[-1] + 1) // 2 :] = False
        return mask
    if spec.dtype == "int64":
        return torch.arange(shape[-1]).expand(shape).contiguous()
    if spec.name in INPUT_RANGES:
        low, high = INPUT_RANGES[spec.name]
        return torch.empty(shape, dtype=TORCH_DTYPES[spec.dtype]).uniform_(low, high, generator=generator)
    return torch.randn(shape, generator=generator).to(TORCH_DTYPES[spec.dtype])
