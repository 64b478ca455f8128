"""Compares a stage's engine with its torch stage on random inputs."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from adacache_engines.bundle.manifest import Graph, LatentSpace
from adacache_engines.bundle.tensors import NUMPY_DTYPES, TensorSpec
from adacache_engines.contract.engine import Backend
from adacache_export.stages import Stage
from adacache_export.tracing.trace import example
from adacache_export.writing.weights_file import TORCH_DTYPES

HALVES = ("float16", "bfloat16")


def check_sizes(latent: LatentSpace) -> list[dict[str, int]]:
    """Two shapes for a model: several frames that, if they may, do not fill whole patches, and one that does."""
    frames, rows, columns = latent.patch
    less = 0 if latent.whole_patches else 1
    clip = {"frames": 3 * frames, "height": 4 * rows - less * (rows > 1), "width": 5 * columns - less * (columns > 1)}
    image = {"frames": frames, "height": 2 * rows, "width": 3 * columns}
    several = {"batch": 4, "samples": 2, "calls": 3, "pairs": 2, "text": 6}
    single = {"batch": 2, "samples": 1, "calls": 1, "pairs": 1, "text": 3}
    return [size | latent.token_axes(**size) | rest for size, rest in ((clip, several), (image, single))]


def encoder_sizes(longest: int, vocabulary: int) -> list[dict[str, int]]:
    """Two shapes for a text encoder: as long as its text gets (:func:`example` counts tokens up), and short."""
    return [{"batch": 2, "text": min(longest, vocabulary)}, {"batch": 1, "text": 3}]


def decoder_sizes(latent: LatentSpace) -> list[dict[str, int]]:
    """Two shapes for a VAE's decoder: several images or latent frames, and a single one of another aspect."""
    return [latent.window_axes(3, 5, 7, images=2), latent.window_axes(1, 4, 3)]


def vae_encoder_sizes(latent: LatentSpace) -> list[dict[str, int]]:
    """Likewise for its encoder: some frames beyond whole latent frames, and a single one."""
    rule = latent.windows
    frames = rule.frames % rule.stretch + 2 * rule.stretch
    sizes = ((latent.image_axes(5, 7, images=2), frames), (latent.image_axes(4, 3), 1))
    return [{**axes, "pixel_frames": some, "frames": rule.encoded(some)} for axes, some in sizes]


def compare(
    stage: Stage, graph: Graph, backend: Backend, read: Callable[[str], Tensor], shapes: Sequence[Mapping[str, int]]
) -> float:
    """Runs both on the same seeded inputs, the torch stage as :class:`adacache_engines.bundle.entries.Check` says.

    ``read`` gives a weight by its key, in the dtype that it has in the graph.

    Returns:
        Worst max |engine - torch| / max(1, rms(torch)) over all outputs and shapes; NaN where either gave one.
    """
    wide = not any(spec.dtype in HALVES for spec in (*stage.inputs, *stage.outputs))
    weights = {name: read(key).float() if wide else read(key) for name, key in stage.keys().items()}
    # assigned, not copied: what is mapped from the checkpoint's file stays mapped
    stage.module.load_state_dict(weights, assign=True)
    engine = backend.load(graph)
    generator = torch.Generator().manual_seed(0)
    errors = []
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
            errors.append(float((got - reference).abs().max()) / scale)
    stage.module.to("meta")  # lets go of converted copies
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _to_numpy(value: Tensor, spec: TensorSpec) -> np.ndarray:
    if spec.dtype == "bfloat16":
        return value.contiguous().view(torch.int16).numpy().view(NUMPY_DTYPES["bfloat16"])
    assert value.dtype == TORCH_DTYPES[spec.dtype]
    return value.contiguous().numpy()
