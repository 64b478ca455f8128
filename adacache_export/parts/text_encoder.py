"""The text encoder as a part of a bundle."""

from pathlib import Path

from adacache_engines.bundle.manifest import DTYPES, Precision, TextRule
from adacache_engines.errors import InputError
from adacache_export.parts.part import Part, write_part
from adacache_export.phases import Progress, running_total
from adacache_export.text_encoders.registry import TextEncoder, open_text_encoder
from adacache_export.verification.sizes import encoder_sizes

TOKENIZER = "tokenizer.json"


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
