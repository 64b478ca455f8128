"""The parts of a bundle, its text encoder and its VAE: each has a folder with its graphs and weights.

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

from adacache_engines.bundle.latent_space import VaePrecision
from adacache_engines.bundle.manifest import DTYPES, FileEntry, Graph, LatentSpace, PartName, Precision, TextRule
from adacache_engines.bundle.tensors import DType
from adacache_engines.errors import InputError
from adacache_engines.onnxruntime.engine import OrtBackend
from adacache_export.phases import Progress, running_total
from adacache_export.stages import Stage
from adacache_export.text_encoders.registry import TextEncoder, open_text_encoder
from adacache_export.tracing.graphs import Sizes, export_graphs
from adacache_export.vaes.registry import Vae, open_vae, recognise_vae
from adacache_export.verification.parity import decoder_sizes, encoder_sizes, vae_encoder_sizes
from adacache_export.writing.folder import file_entries, scratch
from adacache_export.writing.weights_file import TORCH_DTYPES, reader, write_weights

WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer.json"
DIGITS = 12  # hexadecimal digits of the digest in a folder's name
SMALL_FILES = 1 << 24  # bytes; more than all graphs and a tokenizer take


@dataclass(frozen=True)
class Part:
    """A part that was written.

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
        name: which part it is.
        stages: stages with modules on the meta device, each list of them with the sizes of dynamic axes that its
            engines are verified at.
        tensors: weights under the stages' keys, mapped from their files.
        dtypes: dtypes to write the weights in, by key.
        precision: precision of the stages, which decides how much an engine may differ from its stage.
        progress: object that is told of every phase.
        others: content of further files of the part, by name.

    Raises:
        ExportError: a stage cannot be traced, an engine disagrees with its stage, or the disk is full; nothing is left.
    """
    read = reader(tensors, dtypes)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    nbytes = weights_nbytes(tensors, dtypes)
    with scratch(bundle, name, nbytes + SMALL_FILES) as building:
        weights = building / WEIGHTS
        what = name.replace("_", " ") if name == "text_encoder" else "VAE"
        step = progress.phase(f"writing the weights of the {what}", nbytes)
        locations = write_weights(weights, shapes, dtypes, read, step)
        graphs: dict[str, Graph] = {}
        for some, sizes in stages:
            graphs |= export_graphs(some, precision, weights, locations, read, sizes, OrtBackend(bundle), progress)
        for file, content in (others or {}).items():
            (building / file).write_bytes(content)
        entries = file_entries(building, progress.phase(f"hashing the {what}", nbytes))
        place = bundle / f"{name}-{_digest(entries)[:DIGITS]}"
        if place.is_dir() and file_entries(place, lambda _: None) != entries:
            shutil.rmtree(place)  # damaged
        if not place.is_dir():
            building.chmod(0o755)
            building.rename(place)
    return Part(
        place.name,
        {key: graph.model_copy(update={"path": f"{place.name}/{graph.name}.onnx"}) for key, graph in graphs.items()},
        {f"{place.name}/{file}": entry for file, entry in entries.items()},
    )


def weights_nbytes(tensors: Mapping[str, Tensor], dtypes: Mapping[str, DType]) -> int:
    """Return the size of tensors in bytes, each in the dtype that it is to have."""
    return sum(tensor.numel() * TORCH_DTYPES[dtypes[key]].itemsize for key, tensor in tensors.items())


def _digest(entries: Mapping[str, FileEntry]) -> str:
    return hashlib.sha256("".join(f"{entry.sha256}  {file}\n" for file, entry in entries.items()).encode()).hexdigest()


def open_encoder(folder: Path, text: TextRule, precision: Precision, progress: Progress) -> TextEncoder:
    """Open the text encoder in a folder for a model.

    Args:
        folder: folder in the layout of Hugging Face.
        text: what the model takes.
        precision: precision of the encoder in the bundle.
        progress: object that is told of every phase.

    Raises:
        CheckpointError: the folder holds no complete text encoder.
        InputError: its captions have another width than the model takes.
    """
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    scanned = running_total(progress.phase("checking the text encoder", size))
    encoder = open_text_encoder(folder, DTYPES[precision], scanned)
    if encoder.config.d_model != text.width:
        raise InputError(
            f"text encoder {folder} gives captions of width {encoder.config.d_model}, the model takes {text.width}; "
            "choose the encoder that the model was trained with"
        )
    return encoder


def add_encoder(
    bundle: Path, encoder: TextEncoder, text: TextRule, precision: Precision, progress: Progress
) -> tuple[Part, TextRule]:
    """Write a text encoder into a bundle; return the part, and the text rule of the manifest with the encoder in it."""
    sizes = encoder_sizes(text.max_length, encoder.config.vocab_size)
    others = {TOKENIZER: encoder.tokenizer}
    tensors = encoder.checkpoint.tensors
    stages, dtypes = [(encoder.stages, sizes)], encoder.dtypes()
    part = write_part(bundle, "text_encoder", stages, tensors, dtypes, precision, progress, others)
    changes = {
        "tokenizer": f"{part.folder}/{TOKENIZER}",
        "encoder_stages": tuple(part.graphs.values()),
        "encoder_config": encoder.config.model_dump(mode="json"),
        "precision": precision,
    }
    return part, text.model_copy(update=changes)


def open_decoder(folder: Path, latent: LatentSpace, precision: VaePrecision, progress: Progress) -> Vae:
    """Open the VAE in a folder for a model.

    Args:
        folder: folder with ``config.json`` and weights.
        latent: the model's latent space.
        precision: precision of the VAE in the bundle.
        progress: object that is told of every phase.

    Raises:
        CheckpointError: the folder holds no complete VAE of a known kind.
        InputError: the VAE decodes other latents than the model makes.
    """
    recognise_vae(folder, latent)
    size = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    return open_vae(folder, latent, precision, running_total(progress.phase("checking the VAE", size)))


def add_decoder(bundle: Path, vae: Vae, latent: LatentSpace, progress: Progress) -> tuple[Part, LatentSpace]:
    """Write a VAE into a bundle; return the part, and the latent space of the manifest with the VAE in it."""
    fed, coding = vae.added_to(latent, {}), vae.coding
    stages = [(coding.decoding, decoder_sizes(fed)), (coding.encoding, vae_encoder_sizes(fed))]
    tensors, used = vae.checkpoint.tensors, [one for one in stages if one[0]]
    part = write_part(bundle, "vae", used, tensors, vae.dtypes(), vae.precision, progress)
    return part, vae.added_to(latent, part.graphs)
