"""The parts that a bundle gets: all of them opened and checked against the model, then written one after another."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from adacache_engines.bundle.manifest import ImageRule, LatentSpace, PartName, TextRule
from adacache_export.image_encoders.registry import ImageEncoder
from adacache_export.options import PartOptions
from adacache_export.parts.image_encoder import add_image, open_image
from adacache_export.parts.part import Part, weights_nbytes
from adacache_export.parts.text_encoder import add_encoder, open_encoder
from adacache_export.parts.vae import add_decoder, open_decoder
from adacache_export.phases import Progress
from adacache_export.text_encoders.registry import TextEncoder
from adacache_export.vaes.registry import Vae


@dataclass(frozen=True)
class Rules:
    """The entries of a manifest that parts belong to, under their names there.

    Attributes:
        latent: relation between pixels and latents, for the VAE.
        text: rule for prompts, for the text encoder.
        image: rule for images, for the image encoder; None = the model attends to none.
    """

    latent: LatentSpace
    text: TextRule
    image: ImageRule | None

    def entries(self) -> dict[str, Any]:
        """Return the entries by their names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False)
class OpenedParts:
    """Parts that fit a model; None = the bundle gets none of the kind.

    Attributes:
        rules: what the model takes, and the parts that are there already.
        options: choices of the user.
    """

    rules: Rules
    options: PartOptions
    vae: Vae | None
    text_encoder: TextEncoder | None
    image_encoder: ImageEncoder | None

    def nbytes(self) -> int:
        """Return the size in bytes of all weights as they are written."""
        opened = (self.vae, self.text_encoder, self.image_encoder)
        return sum(weights_nbytes(part.checkpoint.tensors, part.dtypes()) for part in opened if part)

    def write(self, bundle: Path, progress: Progress) -> tuple[dict[PartName, Part], Rules]:
        """Write the parts into a bundle; return them, and the rules with their graphs.

        Raises:
            ExportError: a stage cannot be traced, an engine disagrees with its stage, or the disk is full.
        """
        parts: dict[PartName, Part] = {}
        rules, precision = self.rules, self.options.text_precision
        if self.text_encoder:
            parts["text_encoder"], text = add_encoder(bundle, self.text_encoder, rules.text, precision, progress)
            rules = replace(rules, text=text)
        if self.image_encoder:
            parts["image_encoder"], image = add_image(bundle, self.image_encoder, progress)
            rules = replace(rules, image=image)
        if self.vae:
            parts["vae"], latent = add_decoder(bundle, self.vae, rules.latent, progress)
            rules = replace(rules, latent=latent)
        return parts, rules


def open_parts(
    folders: Mapping[PartName, Path | None], rules: Rules, options: PartOptions, progress: Progress
) -> OpenedParts:
    """Open the parts in folders, and check that they fit a model.

    Args:
        folders: folder of each part that there is.
        rules: what the model takes.
        options: choices of the user.
        progress: object that is told of every phase.

    Raises:
        CheckpointError: a folder holds no complete part of a known kind.
        InputError: a part does not fit the model.
    """
    vae, text, image = (folders.get(name) for name in ("vae", "text_encoder", "image_encoder"))
    return OpenedParts(
        rules,
        options,
        open_decoder(vae, rules.latent, options.vae_precision, progress) if vae else None,
        open_encoder(text, rules.text, options.text_precision, progress) if text else None,
        open_image(image, rules.image, progress) if image else None,
    )
