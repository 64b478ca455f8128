"""Write the parts of a bundle, its encoders and its VAE, each to a folder with its graphs and weights.

So a part is the same whether it was exported with the model or added later, and replacing one touches no other file.
The folder's name ends in a digest of its content: a new part has another name than the one that it replaces, and the
manifest changes from one to the other in one step.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from adacache_engines.bundle.manifest import FileEntry, Graph, PartName, Precision
from adacache_engines.bundle.tensors import DType
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.phases import Progress
from adacache_export.stages import Stage
from adacache_export.tracing.graphs import Sizes, export_graphs
from adacache_export.writing.folder import file_entries, scratch
from adacache_export.writing.weights_file import TORCH_DTYPES, reader, write_weights

WEIGHTS = "weights.safetensors"
DIGITS = 12  # hexadecimal digits of the digest in a folder's name
SMALL_FILES = 1 << 24  # bytes; more than all graphs and a tokenizer take


@dataclass(frozen=True)
class Part:
    """The result of writing a part.

    Attributes:
        folder: name of the part's folder in the bundle.
        graphs: the part's graphs by name.
        files: the part's files by path in the bundle.
    """

    folder: str
    graphs: Mapping[str, Graph]
    files: Mapping[str, FileEntry]

    @property
    def weights(self) -> str:
        """Path of the weights file in the bundle."""
        return f"{self.folder}/{WEIGHTS}"


def write_part(
    bundle: Path,
    name: PartName,
    stages: Sequence[tuple[Sequence[Stage], Sequence[Sizes]]],
    tensors: Mapping[str, Tensor],
    dtypes: Mapping[str, DType],
    precision: Precision,
    progress: Progress,
    others: Mapping[str, bytes] | None = None,
) -> Part:
    """Write and verify a part's graphs and weights, with no more than one stage's weights in memory at a time.

    Args:
        bundle: folder of the bundle, which gets a folder with the part.
        name: name of the part.
        stages: stages with modules on the meta device, each list of them with the sizes of dynamic axes that its
            engines are verified at.
        tensors: weights under the stages' keys, mapped from their files.
        dtypes: dtypes to write the weights in, by key.
        precision: precision of the stages, which decides how much an engine may differ from its stage.
        progress: object that is told of every phase.
        others: content of the part's further files, by name.

    Raises:
        ExportError: a stage cannot be traced, an engine disagrees with its stage, or the disk is full; nothing is left.
    """
    read = reader(tensors, dtypes)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    nbytes = weights_nbytes(tensors, dtypes)
    with scratch(bundle, name, nbytes + SMALL_FILES) as building:
        weights = building / WEIGHTS
        what = "VAE" if name == "vae" else name.replace("_", " ")
        step = progress.phase(f"writing the weights of the {what}", nbytes)
        locations = write_weights(weights, shapes, dtypes, read, step)
        graphs: dict[str, Graph] = {}
        for some, sizes in stages:
            graphs |= export_graphs(
                some, precision, weights, locations, read, sizes, OrtBackend(building.parent), progress
            )
        for file, content in (others or {}).items():
            (building / file).write_bytes(content)
        entries = file_entries(building, progress.phase(f"hashing the {what}", nbytes))
        place = place_folder(bundle, name, building, entries)
    return Part(
        place,
        {key: graph.model_copy(update={"path": f"{place}/{graph.name}.onnx"}) for key, graph in graphs.items()},
        {f"{place}/{file}": entry for file, entry in entries.items()},
    )


def place_folder(bundle: Path, name: str, building: Path, entries: Mapping[str, FileEntry]) -> str:
    """Rename a built folder to its place in the bundle, ``name`` and a digest of its content; return that name.

    Args:
        bundle: folder of the bundle.
        name: beginning of the folder's name.
        building: the built folder.
        entries: hash and size of its files, by name; an equal folder that is there already stays.
    """
    place = bundle / f"{name}-{_digest(entries)[:DIGITS]}"
    if place.is_dir() and file_entries(place, lambda _: None) != entries:
        shutil.rmtree(place)  # damaged
    if not place.is_dir():
        building.chmod(0o755)
        building.rename(place)
    return place.name


def weights_nbytes(tensors: Mapping[str, Tensor], dtypes: Mapping[str, DType]) -> int:
    """Return the size in bytes of all ``tensors`` together, each stored in its dtype of ``dtypes``."""
    return sum(tensor.numel() * TORCH_DTYPES[dtypes[key]].itemsize for key, tensor in tensors.items())


def _digest(entries: Mapping[str, FileEntry]) -> str:
    return hashlib.sha256("".join(f"{entry.sha256}  {file}\n" for file, entry in entries.items()).encode()).hexdigest()
