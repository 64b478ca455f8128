"""The image encoder as a part of a bundle."""

from pathlib import Path

from adacache_engines.bundle.manifest import ImageRule
from adacache_engines.errors import InputError
from adacache_export.image_encoders.registry import ImageEncoder, open_image_encoder
from adacache_export.parts.part import Part, write_part
from adacache_export.phases import Progress, running_total


def open_image(folder: Path, image: ImageRule | None, progress: Progress) -> ImageEncoder:
    """Open the image encoder in a folder for a model.

    Args:
        folder: folder in the layout of Hugging Face.
        image: what the model takes; None = it attends to no image.
        progress: object that is told of every phase.

    Raises:
        CheckpointError: the folder holds no complete image encoder.
        InputError: its states have another width than the model takes, or the model takes none.
    """
    if image is None:
        raise InputError(f"--image-encoder {folder}: this model attends to no states of an image; leave the option out")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    encoder = open_image_encoder(folder, running_total(progress.phase("checking the image encoder", size)))
    if encoder.rule.width != image.width:
        raise InputError(
            f"image encoder {folder} gives states of width {encoder.rule.width}, the model takes {image.width}; "
            "choose the encoder that the model was trained with"
        )
    return encoder


def add_image(bundle: Path, encoder: ImageEncoder, progress: Progress) -> tuple[Part, ImageRule]:
    """Write an image encoder into a bundle; return the part, and the manifest's rule for images with the encoder."""
    tensors = encoder.checkpoint.tensors
    part = write_part(bundle, "image_encoder", [(encoder.stages, [{}])], tensors, encoder.dtypes(), "fp32", progress)
    return part, encoder.rule.model_copy(update={"encoder_stages": tuple(part.graphs.values())})
