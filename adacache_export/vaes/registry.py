"""The VAEs that can be exported: one module a kind, and the registry that recognises a folder's kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel
from torch import Tensor

from adacache_engines.bundle.latent_space import VaePrecision
from adacache_engines.bundle.manifest import FrameRule, Graph, LatentSpace
from adacache_engines.bundle.tensors import DType
from adacache_engines.errors import CheckpointError, InputError
from adacache_export.checkpoint import Checkpoint, check, open_checkpoint
from adacache_export.checkpoint.formats import read_json
from adacache_export.checkpoint.layout import CONFIG
from adacache_export.stages import weight_shapes
from adacache_export.vaes.autoencoder_kl import vae as autoencoder_kl
from adacache_export.vaes.causal_vae import vae as causal_vae
from adacache_export.vaes.coding import PREFIX, Coding
from adacache_export.vaes.open_sora import vae as open_sora
from adacache_export.vaes.precision import in_precision, weight_dtypes
from adacache_export.vaes.temporal_decoder import vae as temporal_decoder


class Kind(Protocol):
    """What a kind's module provides. ``config`` is its own frozen pydantic model.

    Attributes:
        NAME: of the kind, as the manifest records it.
        CLASSES: that its ``config.json`` names.
        FRAMES: rules of latent frames (``LatentSpace.frames``) that it follows.
        CONFIG: the class of its configurations.
    """

    NAME: str
    CLASSES: tuple[str, ...]
    FRAMES: tuple[FrameRule, ...]
    CONFIG: type[BaseModel]

    def config_from(self, given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """The configuration, from ``config.json`` and the shapes of the folder's tensors.

        Raises:
            CheckpointError: lists all that is missing or not supported.
        """

    def tensors(self, given: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        """The folder's tensors that the stages need, by the names that they have there, less ``PREFIX``."""

    def coding(self, config: Any) -> Coding:
        """Its stages, and how they are fed."""


KINDS: dict[str, Kind] = {kind.NAME: kind for kind in (autoencoder_kl, temporal_decoder, open_sora, causal_vae)}


@dataclass(frozen=True, eq=False)
class Vae:
    """What export needs of a VAE.

    Attributes:
        kind: of :data:`KINDS`.
        config: the VAE's configuration.
        coding: its stages, and how they are fed.
        checkpoint: the weights under the stages' keys, mapped from their files.
        precision: of its convolutions and matrix products.
    """

    kind: str
    config: BaseModel
    coding: Coding
    checkpoint: Checkpoint
    precision: VaePrecision = "fp32"

    def dtypes(self) -> dict[str, DType]:
        """Of the weights, by key."""
        return weight_dtypes(self.coding, self.precision)

    def added_to(self, latent: LatentSpace, graphs: Mapping[str, Graph]) -> LatentSpace:
        """A model's latent space with the VAE; ``graphs`` are those of its stages, none of them yet where it is only to
        be known how they are fed.
        """
        coding = self.coding
        return latent.model_copy(
            update={
                "decoder": self.kind,
                "decoder_config": self.config.model_dump(mode="json"),
                "precision": self.precision,
                "decoding": tuple(graphs[stage.name] for stage in coding.decoding if stage.name in graphs),
                "encoding": tuple(graphs[stage.name] for stage in coding.encoding if stage.name in graphs),
                "windows": coding.windows,
                "images": coding.images,
                "tile": coding.tile,
                "tiles_windows": coding.tiles_windows,
            }
        )


def recognise_vae(folder: Path, latent: LatentSpace) -> Kind:
    """The kind of VAE in a folder, by its ``config.json``.

    Raises:
        CheckpointError: there is none, or it is of no known kind.
        InputError: the model makes pixels itself, or its latents are not what such a VAE decodes.
    """
    if latent.decoder == "pixels":
        raise InputError(f"--vae {folder}: this model makes pixels itself and needs no decoder; leave --vae out")
    fitting = [kind for kind in KINDS.values() if latent.frames in kind.FRAMES]
    named = _class(_config(folder))
    kind = next((kind for kind in KINDS.values() if named in kind.CLASSES), None)
    classes = " or ".join(kind.CLASSES[0] for kind in fitting)
    if kind is None:
        raise CheckpointError(
            f"{folder / CONFIG} cannot be used: it describes {named or 'no class'}; expected {classes}: pass the folder"
            " of the model's VAE"
        )
    if kind not in fitting:
        raise InputError(
            f"--vae {folder}: the frames of a video are other latent frames to {named} than to this model; pass a "
            f"folder with {classes}"
        )
    return kind


def open_vae(
    folder: Path,
    latent: LatentSpace,
    precision: VaePrecision = "fp32",
    progress: Callable[[int], None] | None = None,
) -> Vae:
    """Opens the VAE of a folder with ``config.json`` and weights in any layout that
    :func:`adacache_export.checkpoint.open_checkpoint` knows. Reads every value once, to find NaN.

    Args:
        folder: the folder.
        latent: of the model that it is to decode for.
        precision: of its convolutions and matrix products.
        progress: called with the bytes of weights checked so far.

    Raises:
        CheckpointError: something is missing, damaged, of another kind of VAE, or does not fit; names the folder.
        InputError: the model's latents are not what this VAE decodes.
        MissingDependencyError: diffusers is not installed.
    """
    kind, json = recognise_vae(folder, latent), _config(folder)
    opened = open_checkpoint(folder)
    try:
        config = kind.config_from(json, opened.shapes())
    except CheckpointError as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be used: {error}") from error
    coding = in_precision(kind.coding(config), precision)
    made, wanted = (coding.channels, coding.spatial_factor), (latent.channels, latent.spatial_factor)
    if made != wanted:
        raise InputError(
            f"--vae {folder} decodes latents of {made[0]} channels, {made[1]} pixels a row; the model makes "
            f"{wanted[0]} channels, {wanted[1]} pixels a row: pass the VAE that the model was trained with"
        )
    tensors = {PREFIX + name: tensor for name, tensor in kind.tensors(opened.tensors, config).items()}
    checkpoint = replace(opened, tensors=tensors)
    check(checkpoint, weight_shapes((*coding.decoding, *coding.encoding)), progress=progress)
    return Vae(kind.NAME, config, coding, checkpoint, precision)


def coding_of(latent: LatentSpace) -> Coding:
    """Of the VAE that a bundle has."""
    kind = KINDS[latent.decoder]
    return in_precision(kind.coding(kind.CONFIG.model_validate(latent.decoder_config)), latent.precision)


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} has no {CONFIG}; expected the folder of a VAE, with that and its weights")
    try:
        return read_json(folder / CONFIG)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be used: {error}") from error


def _class(config: Mapping[str, Any]) -> str:
    """The class that a ``config.json`` is of: diffusers' word for it, or transformers'."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return str(config.get("_class_name") or first or config.get("model_type") or "")
