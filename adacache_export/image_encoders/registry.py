"""The image encoders that can be exported, and the choice of one by a folder's ``config.json``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from adacache_engines.bundle.manifest import ImageRule
from adacache_engines.bundle.tensors import DType
from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint import Checkpoint, check, open_checkpoint
from adacache_export.image_encoders.clip import encoder as clip
from adacache_export.image_encoders.preprocessing import read_preprocessing
from adacache_export.stages import Stage, weight_shapes

MODEL_TYPE = "model_type"  # the field of config.json that names the kind


class Kind(Protocol):
    """The content of the ``encoder`` module of a kind.

    ``config`` is the kind's own frozen pydantic model. It has ``image_size`` (pixels each way), ``tokens`` (number of
    states) and ``hidden_size`` (their width).
    """

    def config_from(self, given: Mapping[str, Any]) -> Any:
        """Return the configuration that the content of a ``config.json`` describes.

        Raises:
            CheckpointError: fields are missing or invalid; lists all of them.
        """

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """Return the encoder's stages in order, with modules on the meta device, all in float32.

        The first takes ``pixels`` (1, 3, image_size, image_size). Each gives states (1, tokens, hidden_size), which the
        next one takes as ``hidden``.
        """

    def tensors(self, config: Any, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a folder that the stages need, under the stages' keys."""


KINDS: dict[str, Kind] = {"clip_vision_model": clip}  # by ``model_type``


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """An image encoder that was opened for export.

    Attributes:
        stages: stages in order, one for each layer, so that no more than a layer need ever be in memory.
        checkpoint: weights under the stages' keys, mapped from their files.
        rule: the way from an image to states, without graphs.
    """

    stages: tuple[Stage, ...]
    checkpoint: Checkpoint
    rule: ImageRule

    def dtypes(self) -> dict[str, DType]:
        """Return the dtype of every weight by its key."""
        return dict.fromkeys(self.checkpoint.tensors, "float32")


def open_image_encoder(folder: Path, progress: Callable[[int], None] | None = None) -> ImageEncoder:
    """Open the image encoder of a folder and read every value of its weights once, to find NaN.

    Args:
        folder: folder with ``config.json``, weights in any layout that
            :func:`adacache_export.checkpoint.open_checkpoint` knows, and ``preprocessor_config.json``, which may be in
            ``image_processor`` beside the folder.
        progress: function that is called with the number of bytes checked so far.

    Raises:
        CheckpointError: something is missing, damaged, or does not fit the rest; the message names the folder.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not a folder; expected one with config.json, the weights of an image encoder and"
            " preprocessor_config.json"
        )
    opened = open_checkpoint(folder)
    if opened.config is None:
        raise CheckpointError(f"{folder} has no config.json; expected the one that belongs to the weights")
    try:
        kind = kind_of(opened.config)
        config = kind.config_from(opened.config)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}/config.json cannot be used: {error}") from error
    prepared = read_preprocessing(folder)
    if prepared["side"] != config.image_size:
        raise CheckpointError(
            f"{folder} takes images of {config.image_size} pixels each way, and they are prepared with"
            f" {prepared['side']}: pass an encoder and a preprocessor_config.json of one model"
        )
    stages = kind.stages(config)
    checkpoint = replace(opened, tensors=kind.tensors(config, opened.tensors))
    check(checkpoint, weight_shapes(stages), progress=progress)
    described = config.model_dump(mode="json")
    rule = ImageRule(tokens=config.tokens, width=config.hidden_size, encoder_config=described, **prepared)
    return ImageEncoder(stages, checkpoint, rule)


def reopened(config: Mapping[str, Any]) -> tuple[Stage, ...]:
    """Return the stages of the encoder that a manifest describes by its ``encoder_config``."""
    kind = kind_of(config)
    return kind.stages(kind.config_from(config))


def kind_of(config: Mapping[str, Any]) -> Kind:
    """Return the kind of image encoder that a configuration names.

    Raises:
        CheckpointError: it names none, or one that cannot be exported.
    """
    name = config.get(MODEL_TYPE)
    if not isinstance(name, str) or name not in KINDS:
        raise CheckpointError(f"{MODEL_TYPE} is {name!r}; expected an image encoder of type {', '.join(KINDS)}")
    return KINDS[name]
