"""The text encoders that can be exported, and the choice of one by a folder's ``config.json``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from adacache_engines.bundle.tensors import DType
from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint import Checkpoint, check, open_checkpoint
from adacache_export.stages import Stage, weight_shapes
from adacache_export.text_encoders.t5 import encoder as t5
from adacache_export.text_encoders.tokenizers import tokenizer_of
from adacache_export.text_encoders.umt5 import encoder as umt5

MODEL_TYPE = "model_type"  # the field of config.json that names the kind


class Kind(Protocol):
    """The content of the ``encoder`` module of a kind.

    ``config`` is the kind's own frozen pydantic model. It has the fields ``model_type``, ``vocab_size`` (tokens) and
    ``d_model`` (width of the captions).
    """

    @property
    def FLOAT32_IN_FLOAT16(self) -> tuple[str, ...]:  # noqa: N802 - a constant of a module
        """Endings of the keys of weights that stay float32 in a float16 encoder."""

    def config_from(self, given: Mapping[str, Any]) -> Any:
        """Return the configuration that the content of a ``config.json`` describes.

        Raises:
            CheckpointError: fields are missing or invalid; lists all of them.
        """

    def stages(self, config: Any, precision: DType) -> tuple[Stage, ...]:
        """Return the encoder's stages in order, with modules on the meta device.

        The first takes ``tokens`` (batch, text) int64 and ``mask`` (batch, text) bool, where True is a token. The last
        gives ``captions`` (batch, text, width) float32.
        """

    def tensors(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a folder that the stages need, under the stages' keys."""


KINDS: dict[str, Kind] = {"t5": t5, "mt5": t5, "umt5": umt5}  # by ``model_type``


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A text encoder that was opened for export.

    Attributes:
        stages: stages in order, one for each block, so that no more than a block need ever be in memory.
        checkpoint: weights under the stages' keys, mapped from their files.
        tokenizer: content of ``tokenizer.json``.
        config: configuration of the encoder, of its kind's own class.
        precision: dtype of the stages' weights, except those that ``wide`` names.
        wide: endings of the keys of weights that are float32 whatever the precision.
    """

    stages: tuple[Stage, ...]
    checkpoint: Checkpoint
    tokenizer: bytes
    config: Any
    precision: DType
    wide: tuple[str, ...] = ()

    def dtypes(self) -> dict[str, DType]:
        """Return the dtype of every weight by its key."""
        return {key: "float32" if key.endswith(self.wide) else self.precision for key in self.checkpoint.tensors}


def open_text_encoder(
    folder: Path, precision: DType = "float32", progress: Callable[[int], None] | None = None
) -> TextEncoder:
    """Open the text encoder of a folder and read every value of its weights once, to find NaN.

    The weights may be those of the encoder alone or of a whole encoder-decoder model.

    Args:
        folder: folder with ``config.json``, weights in any layout that
            :func:`adacache_export.checkpoint.open_checkpoint` knows, and ``tokenizer.json`` or ``spiece.model``.
        precision: dtype of the stages; in float16, weights whose products go beyond its range stay float32.
        progress: function that is called with the number of bytes checked so far.

    Raises:
        CheckpointError: something is missing, damaged, or does not fit the rest; the message names the folder.
        MissingDependencyError: a ``spiece.model`` has to be converted and transformers is not installed.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not a folder; expected one with config.json, the weights of a text encoder and a tokenizer"
        )
    opened = open_checkpoint(folder)
    if opened.config is None:
        raise CheckpointError(f"{folder} has no config.json; expected the one that belongs to the weights")
    try:
        kind = kind_of(opened.config)
        config = kind.config_from(opened.config)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}/config.json cannot be used: {error}") from error
    stages = kind.stages(config, precision)
    checkpoint = replace(opened, tensors=kind.tensors(opened.tensors))
    check(checkpoint, weight_shapes(stages), progress=progress)
    wide = kind.FLOAT32_IN_FLOAT16 if precision == "float16" else ()
    return TextEncoder(stages, checkpoint, tokenizer_of(folder, config.vocab_size), config, precision, wide)


def reopened(config: Mapping[str, Any], precision: DType) -> tuple[Any, tuple[Stage, ...]]:
    """Return the configuration and the stages of the encoder that a manifest describes.

    Args:
        config: ``encoder_config`` of the manifest.
        precision: dtype of the stages.
    """
    kind = kind_of(config)
    parsed = kind.config_from(config)
    return parsed, kind.stages(parsed, precision)


def kind_of(config: Mapping[str, Any]) -> Kind:
    """Return the kind of text encoder that a configuration names.

    Raises:
        CheckpointError: it names none, or one that cannot be exported.
    """
    name = config.get(MODEL_TYPE)
    if not isinstance(name, str) or name not in KINDS:
        raise CheckpointError(f"{MODEL_TYPE} is {name!r}; expected a text encoder of type {', '.join(KINDS)}")
    return KINDS[name]
