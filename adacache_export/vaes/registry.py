"""The kinds of VAE that can be exported, and the choice of one by a folder's ``config.json``."""

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
from adacache_export.stages import Stage, weight_shapes
from adacache_export.vaes.autoencoder_kl import vae as autoencoder_kl
from adacache_export.vaes.autoencoder_kl_wan import vae as autoencoder_kl_wan
from adacache_export.vaes.causal_vae import vae as causal_vae
from adacache_export.vaes.coding import PREFIX, Coding
from adacache_export.vaes.open_sora import vae as open_sora
from adacache_export.vaes.precision import in_precision, weight_dtypes
from adacache_export.vaes.temporal_decoder import vae as temporal_decoder


class Kind(Protocol):
    """The content of the ``vae`` module of a kind. ``config`` is the kind's own frozen pydantic model."""

    NAME: str  # as the manifest records it

    @property
    def CLASSES(self) -> tuple[str, ...]:  # noqa: N802 - a constant of a module, like the next ones
        """Return the names of classes by which a ``config.json`` shows the kind."""

    @property
    def FRAMES(self) -> tuple[FrameRule, ...]:  # noqa: N802
        """Return the rules from frames to latent frames (``LatentSpace.frames``) that the kind follows."""

    @property
    def CONFIG(self) -> type[BaseModel]:  # noqa: N802
        """Return the class of the kind's configurations."""

    def config_from(self, given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], /) -> Any:
        """Return the configuration, from ``config.json`` and the shapes of the folder's tensors.

        Raises:
            CheckpointError: lists all that is missing or not supported.
        """

    def tensors(self, given: Mapping[str, Tensor], config: Any, /) -> dict[str, Tensor]:
        """Return the tensors of a folder that the stages need, under the stages' keys without ``PREFIX``."""

    def coding(self, config: Any) -> Coding:
        """Return the stages of a VAE, and how they are fed."""


KINDS: dict[str, Kind] = {
    autoencoder_kl.NAME: autoencoder_kl,
    temporal_decoder.NAME: temporal_decoder,
    open_sora.NAME: open_sora,
    causal_vae.NAME: causal_vae,
    autoencoder_kl_wan.NAME: autoencoder_kl_wan,
}


@dataclass(frozen=True, eq=False)
class Vae:
    """A VAE that was opened for export.

    Attributes:
        kind: name of the kind, a key of :data:`KINDS`.
        config: configuration of the VAE.
        coding: stages of the VAE, and how they are fed.
        checkpoint: weights under the stages' keys, mapped from their files.
        precision: precision of convolutions and matrix products.
    """

    kind: str
    config: BaseModel
    coding: Coding
    checkpoint: Checkpoint
    precision: VaePrecision = "fp32"

    def dtypes(self) -> dict[str, DType]:
        """Return the dtype of every weight by its key."""
        return weight_dtypes(self.coding, self.precision)

    def added_to(self, latent: LatentSpace, graphs: Mapping[str, Graph]) -> LatentSpace:
        """Return a model's latent space with the VAE in it.

        Args:
            latent: latent space of the model.
            graphs: graphs of the VAE's stages by name; empty before they are made, when only the feeding counts.
        """
        coding = self.coding

        def made(stages: tuple[Stage, ...]) -> tuple[Graph, ...]:
            return tuple(graphs[stage.name] for stage in stages if stage.name in graphs)

        return latent.model_copy(
            update={
                "decoder": self.kind,
                "decoder_config": self.config.model_dump(mode="json"),
                "precision": self.precision,
                "decoding": made(coding.decoding),
                "encoding": made(coding.encoding),
                "first_decoding": made(coding.first_decoding),
                "first_encoding": made(coding.first_encoding),
                "chunks": coding.chunks,
                "images": coding.images,
                "tile": coding.tile,
                "tiles_chunks": coding.tiles_chunks,
            }
        )


def recognise_vae(folder: Path, latent: LatentSpace) -> Kind:
    """Return the kind of VAE in a folder, by its ``config.json``.

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
    """Open the VAE of a folder and read every value of its weights once, to find NaN.

    Args:
        folder: folder with ``config.json`` and weights in any layout that
            :func:`adacache_export.checkpoint.open_checkpoint` knows.
        latent: latent space of the model that the VAE is to decode for.
        precision: precision of convolutions and matrix products.
        progress: function that is called with the number of bytes checked so far.

    Raises:
        CheckpointError: something is missing, damaged, of another kind of VAE, or does not fit; the message names the
            folder.
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
    check(checkpoint, weight_shapes((*coding.decoders, *coding.encoders)), progress=progress)
    return Vae(kind.NAME, config, coding, checkpoint, precision)


def coding_of(latent: LatentSpace) -> Coding:
    """Return the stages of the VAE that a bundle has, and how they are fed."""
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
    """Return the name of the class that a ``config.json`` is of, in the notation of diffusers or transformers."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return str(config.get("_class_name") or first or config.get("model_type") or "")
