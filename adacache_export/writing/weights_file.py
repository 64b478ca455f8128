"""The weights file of a bundle, written tensor by tensor so that no second copy of the weights is ever in memory.

The format is safetensors: 8 bytes of little-endian header length, a JSON header, then the bytes of all tensors.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adacache_engines.bundle.tensors import ELEMENT_TYPES, DType
from adacache_engines.errors import ExportError
from adacache_export.checkpoint.mapped import taken

ALIGNMENT = 64  # bytes; the data section begins at a multiple
TORCH_DTYPES: Mapping[DType, torch.dtype] = {name: getattr(torch, name) for name in ELEMENT_TYPES}


@dataclass(frozen=True)
class Location:
    """Place of a tensor in a weights file.

    Attributes:
        shape: sizes of the tensor's axes.
        dtype: dtype of the tensor in the file.
        offset: number of bytes between the beginning of the file and the tensor.
        nbytes: size of the tensor in bytes.
    """

    shape: tuple[int, ...]
    dtype: DType
    offset: int
    nbytes: int


def reader(tensors: Mapping[str, Tensor], dtypes: Mapping[str, DType]) -> Callable[[str], Tensor]:
    """Return a function that reads a weight by its key, in the dtype it is to have and in memory of its own.

    The function raises ExportError where float16 cannot hold a value.

    Args:
        tensors: weights by key, mapped from their files.
        dtypes: dtypes that the weights are to have, by key.
    """

    def read(key: str) -> Tensor:
        tensor = taken(tensors[key], TORCH_DTYPES[dtypes[key]])
        if dtypes[key] == "float16" and not tensor.isfinite().all():
            raise ExportError(f"{key} has values beyond 65504, which fp16 cannot hold: use bf16 or fp32 instead")
        return tensor

    return read


def write_weights(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, DType],
    read: Callable[[str], Tensor],
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Location]:
    """Write tensors, read one at a time and converted, and return the place of each in the file.

    Args:
        path: file to write.
        shapes: shape of every tensor by key, in the order in which they are written.
        dtypes: dtype of every tensor in the file, by key.
        read: function that returns a tensor by its key.
        progress: function that is called with the size of each tensor once it is written, in bytes.
    """
    header: dict[str, object] = {}
    position = 0
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        sizes[name] = TORCH_DTYPES[dtypes[name]].itemsize * int(torch.Size(shape).numel())
        header[name] = {
            "dtype": ELEMENT_TYPES[dtypes[name]].safetensors,
            "shape": list(shape),
            "data_offsets": [position, position + sizes[name]],
        }
        position += sizes[name]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    locations: dict[str, Location] = {}
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, shape in shapes.items():
            tensor = read(name).to(TORCH_DTYPES[dtypes[name]]).contiguous()
            locations[name] = Location(shape, dtypes[name], file.tell(), sizes[name])
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)
            progress(sizes[name])
    return locations
