"""Write checkpoints with random weights: an STDiT3 of any size, and published models of full size."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from adacache_engines.bundle.tensors import ELEMENT_TYPES, DType
from adacache_export.checkpoint.layout import CONFIG
from adacache_export.checkpoint.pipeline_folder import INDEX, TRANSFORMERS
from adacache_export.families.open_sora.family import expected
from adacache_export.families.open_sora.transformer import OpenSoraConfig
from adacache_export.writing.weights_file import TORCH_DTYPES, write_weights
from tools.speed.published import Published
from tools.speed.size import CHANNELS, PATCH, Size

SHARD_NBYTES = 5e9  # as published
Shapes = Mapping[str, tuple[int, ...]]


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
    """Write an STDiT3 with random float32 weights as one file; return its size in bytes."""
    shapes = {name: shape for name, shape in expected(config).items() if not name.startswith("rope.")}
    generator = torch.Generator().manual_seed(0)
    dtypes: dict[str, DType] = dict.fromkeys(shapes, "float32")
    write_weights(path, shapes, dtypes, lambda name: _random(name, shapes[name], generator))
    return path.stat().st_size


def write_published(folder: Path, model: Published, dtype: DType, random_nbytes: float = math.inf) -> int:
    """Write the folder of a pipeline that has a published model's transformers, each in shards, and nothing else.

    Args:
        folder: folder to make.
        model: the model.
        dtype: dtype of the weights.
        random_nbytes: size of the weights that are random, in bytes. Those that follow are zeros, which are left out of
            the files (holes) and take no room on the disk; they are read and mapped like others.

    Returns:
        The size of the weights in bytes, holes included.
    """
    folder.mkdir(parents=True)
    nbytes, shapes, generator = 0, model.shapes(), torch.Generator().manual_seed(0)
    components = TRANSFORMERS[: model.experts]
    for component in components:
        place = folder / component
        place.mkdir()
        (place / CONFIG).write_text(json.dumps(asdict(model.config)))
        shards = list(_shards(shapes, TORCH_DTYPES[dtype].itemsize))
        weight_map: dict[str, str] = {}
        for number, names in enumerate(shards, 1):
            file = f"diffusion_pytorch_model-{number:05}-of-{len(shards):05}.safetensors"
            of_shard = {name: shapes[name] for name in names}
            nbytes += _write_shard(place / file, of_shard, dtype, generator, random_nbytes - nbytes)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    entries = {component: ["diffusers", "Transformer"] for component in components}
    (folder / INDEX).write_text(json.dumps({**entries, **model.index}))
    return nbytes


def _shards(shapes: Shapes, itemsize: int) -> Iterator[list[str]]:
    """Yield the names of the tensors of each shard."""
    names: list[str] = []
    nbytes = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if names and nbytes + size > SHARD_NBYTES:
            yield names
            names, nbytes = [], 0
        names.append(name)
        nbytes += size
    yield names


def _write_shard(path: Path, shapes: Shapes, dtype: DType, generator: torch.Generator, random_nbytes: float) -> int:
    """Write a safetensors file whose tensors are random, up to a number of bytes, and then holes; return its size."""
    position, header, sizes = 0, {}, {}
    for name, shape in shapes.items():
        sizes[name] = math.prod(shape) * TORCH_DTYPES[dtype].itemsize
        ends = [position, position + sizes[name]]
        header[name] = {"dtype": ELEMENT_TYPES[dtype].safetensors, "shape": list(shape), "data_offsets": ends}
        position = ends[1]
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            random_nbytes -= sizes[name]
            if random_nbytes < 0:
                file.seek(sizes[name], 1)
            else:
                tensor = _random(name, shape, generator).to(TORCH_DTYPES[dtype])
                file.write(tensor.view(-1).view(torch.uint8).numpy().data)
        file.truncate()
    return path.stat().st_size


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return a random float32 tensor; matrices keep the scale of their inputs, so that hidden states stay finite."""
    if name.endswith(("_norm.weight", "norm_q.weight", "norm_k.weight")):
        return torch.ones(shape)
    inputs = math.prod(shape[1:])
    return torch.randn(shape, generator=generator) * (0.5 * inputs**-0.5 if len(shape) > 1 else 0.02)
