"""Compares a stage's engine with its torch stage on random inputs."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from adacache_engines.base import Backend
from adacache_engines.bundle import Graph, LatentSpace, Precision
from adacache_engines.tensors import NUMPY_DTYPES, TensorSpec
from adacache_export.onnx_export import example
from adacache_export.stages import Stage
from adacache_export.weights_file import TORCH_DTYPES

# relative to the rms of the output: rounding of the precision, through one stage
TOLERANCES: Mapping[Precision, float] = {"fp32": 2e-5, "fp16": 2e-2, "bf16": 1.5e-1}


def example_sizes(latent: LatentSpace) -> dict[str, int]:
    """Sizes of the dynamic axes for tracing: none is 1, and rows and columns do not fill whole patches."""
    frames, rows, columns = latent.patch
    size = {"frames": 3 * frames, "height": 4 * rows - (rows > 1), "width": 5 * columns - (columns > 1)}
    rest = {"batch": 4, "samples": 2, "calls": 3, "pairs": 2, "text": 6}
    return size | latent.token_axes(**size) | rest


def check_sizes(latent: LatentSpace) -> list[dict[str, int]]:
    """Two shapes to compare at: that of :func:`example_sizes`, and a single frame of other sizes."""
    frames, rows, columns = latent.patch
    size = {"frames": frames, "height": 2 * rows, "width": 3 * columns}
    rest = {"batch": 2, "samples": 1, "calls": 1, "pairs": 1, "text": 3}
    return [example_sizes(latent), size | latent.token_axes(**size) | rest]


def compare(
    stage: Stage, graph: Graph, backend: Backend, read: Callable[[str], Tensor], shapes: Sequence[Mapping[str, int]]
) -> float:
    """Runs both on the same seeded inputs, the torch stage with the checkpoint's weights.

    ``read`` gives a weight by its key, in the precision of the graph.

    Returns:
        Worst max |engine - torch| / max(1, rms(torch)) over all outputs and shapes; NaN where an engine gave NaN.
    """
    # assigned, not copied: what is mapped from the checkpoint's file stays mapped
    stage.module.load_state_dict({name: read(key) for name, key in stage.keys().items()}, assign=True)
    engine = backend.load(graph)
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for sizes in shapes:
        inputs = [example(spec, sizes, generator) for spec in stage.inputs]
        with torch.no_grad():
            result = stage.module(*inputs)
        expected = result if isinstance(result, tuple) else (result,)
        buffers = {}
        for spec, value in zip(stage.inputs, inputs, strict=True):
            buffers[spec.name] = backend.device.empty(tuple(value.shape), NUMPY_DTYPES[spec.dtype])
            buffers[spec.name].write(_to_numpy(value, spec))
        for spec, value in zip(stage.outputs, expected, strict=True):
            buffers[spec.name] = backend.device.empty(tuple(value.shape), NUMPY_DTYPES[spec.dtype])
        engine.bind(buffers)()
        for spec, value in zip(stage.outputs, expected, strict=True):
            reference = value.double()
            got = torch.from_numpy(buffers[spec.name].read().astype(np.float64))
            scale = max(1.0, float(reference.square().mean().sqrt()))
            # not max(): a NaN must stay one
            error = float((got - reference).abs().max()) / scale
            worst = error if not error <= worst else worst
    stage.module.to("meta")  # lets go of converted copies
    return worst


def _to_numpy(value: Tensor, spec: TensorSpec) -> np.ndarray:
    if spec.dtype == "bfloat16":
        return value.contiguous().view(torch.int16).numpy().view(NUMPY_DTYPES["bfloat16"])
    assert value.dtype == TORCH_DTYPES[spec.dtype]
    return value.contiguous().numpy()
