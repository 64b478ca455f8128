"""A Hugging Face folder with a T5 encoder as stages, with its tokenizer in the form that the runtime reads."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from adacache_engines.bundle.tensors import DType, TensorSpec
from adacache_engines.errors import BundleError, CheckpointError, require
from adacache_export.checkpoint import Checkpoint, check, open_checkpoint
from adacache_export.checkpoint.formats import unreadable
from adacache_export.stages import OUT, Stage, weight_shapes
from adacache_export.text_encoders.t5.modules import FLOAT32_IN_FLOAT16, Block, Embed, Final, T5Config, T5Encoder
from adacache_runtime.text.tokenizer import Tokenizer

PREFIX = "text_encoder."  # keeps the encoder's weights apart from the model's in one weights file
EMBEDDINGS = "shared.weight"
SAME_EMBEDDINGS = ("encoder.embed_tokens.weight", "embed_tokens.weight")  # the same tensor under the stack's names
OTHER_HALF = ("decoder.", "lm_head.")
SENTINEL = re.compile(r"<extra_id_\d+>")  # marks a gap in T5's pre-training
# T5 does not scale scores: at 40, float32's rounding of one moves its weight by some 1e-5. 9e-6 with random weights
TOLERANCE = 2e-4
ANY_LENGTH = 300  # tokens; only to see whether a tokenizer is usable


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """What export needs of a text encoder.

    Attributes:
        stages: in order, one a block, so that no more of it than a block need ever be in memory.
        checkpoint: the weights under the stages' keys, mapped from their files.
        tokenizer: content of ``tokenizer.json``.
        config: the encoder's configuration.
        precision: of its products' weights, but for some that float16 is too narrow for.
    """

    stages: tuple[Stage, ...]
    checkpoint: Checkpoint
    tokenizer: bytes
    config: T5Config
    precision: DType

    def dtypes(self) -> dict[str, DType]:
        """Of the weights, by key."""
        wide = FLOAT32_IN_FLOAT16 if self.precision == "float16" else ()
        return {key: "float32" if key.endswith(wide) else self.precision for key in self.checkpoint.tensors}


def open_text_encoder(
    folder: Path, precision: DType = "float32", progress: Callable[[int], None] | None = None
) -> TextEncoder:
    """Opens a T5 (1.0, 1.1 or mT5) of a folder with ``config.json``, weights in any layout that
    :func:`adacache_export.checkpoint.open_checkpoint` knows, and ``tokenizer.json`` or ``spiece.model``.

    The weights may be those of the encoder alone or of the whole T5. Reads every value once, to find NaN.

    Args:
        folder: the folder.
        precision: of the stages; in float16, what goes beyond its range stays float32.
        progress: called with the bytes of weights checked so far.

    Raises:
        CheckpointError: something is missing, damaged, or does not fit; names the folder.
        MissingDependencyError: a ``spiece.model`` has to be converted and transformers is not installed.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; expected one with config.json, T5's weights and a tokenizer")
    opened = open_checkpoint(folder)
    if opened.config is None:
        raise CheckpointError(f"{folder} has no config.json; expected the one that belongs to the T5 weights")
    try:
        config = T5Config.from_json(opened.config)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}/config.json cannot be used: {error}") from error
    stages = encoder_stages(config, precision)
    checkpoint = replace(opened, tensors=_encoder_tensors(opened.tensors))
    check(checkpoint, weight_shapes(stages), progress=progress)
    return TextEncoder(stages, checkpoint, _tokenizer(folder, config), config, precision)


def encoder_stages(config: T5Config, precision: DType) -> tuple[Stage, ...]:
    """``encoder.embed``, ``encoder.00``, ..., ``encoder.final``: from ``tokens`` (batch, text) int64 and ``mask``
    (batch, text) bool, True = a token, to ``captions`` (batch, text, width) float32. Modules are on the meta device.
    """
    spec = _specs(config, "float32" if precision == "float16" else precision)
    hidden, bias = spec["hidden"], spec["bias"]
    after = hidden.model_copy(update={"name": hidden.name + OUT})
    with torch.device("meta"):
        embed, block, final = Embed(config), Block(config), Final(config)
    tolerance = TOLERANCE if precision == "float32" else None
    return (
        Stage("encoder.embed", "encoder.embed", embed, PREFIX, (spec["tokens"], spec["mask"]), (hidden, bias)),
        *(
            Stage(
                f"encoder.{i:02d}",
                "encoder.block",
                block,
                f"{PREFIX}encoder.block.{i}.",
                (hidden, bias),
                (after,),
                tolerance=tolerance,
            )
            for i in range(config.num_layers)
        ),
        Stage("encoder.final", "encoder.final", final, f"{PREFIX}encoder.", (hidden,), (spec["captions"],)),
    )


def whole_encoder_stage(config: T5Config) -> Stage:
    """``encoder``, as bundles had it before its blocks were stages, float32."""
    with torch.device("meta"):
        module = T5Encoder(config)
    spec = _specs(config, "float32")
    return Stage("encoder", "encoder", module, PREFIX, (spec["tokens"], spec["mask"]), (spec["captions"],))


def _specs(config: T5Config, precision: DType) -> dict[str, TensorSpec]:
    kinds: dict[str, tuple[DType, tuple[int | str, ...]]] = {
        "tokens": ("int64", ("batch", "text")),
        "mask": ("bool", ("batch", "text")),
        "hidden": (precision, ("batch", "text", config.d_model)),
        "bias": (precision, ("batch", config.num_heads, "text", "text")),
        "captions": ("float32", ("batch", "text", config.d_model)),
    }
    return {name: TensorSpec(name=name, dtype=dtype, axes=axes) for name, (dtype, axes) in kinds.items()}


def _encoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors by key of the stage: of a whole T5 the other half is left, of tied embeddings the copies;
    a stack that was saved by itself gets the name of its place.
    """
    stacked = any(name.startswith("encoder.") for name in tensors)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(OTHER_HALF) and name != EMBEDDINGS and name not in SAME_EMBEDDINGS:
            found[PREFIX + name if stacked else f"{PREFIX}encoder.{name}"] = tensor
    for name in (EMBEDDINGS, *SAME_EMBEDDINGS):
        if name in tensors:
            return {PREFIX + EMBEDDINGS: tensors[name], **found}
    return found


def _tokenizer(folder: Path, config: T5Config) -> bytes:
    """Content of the ``tokenizer.json`` of the folder or, as diffusers has it, of ``tokenizer`` beside it; or of one
    made from the ``spiece.model`` there.
    """
    places = (folder, folder.absolute().parent / "tokenizer")
    files = [place / name for place in places for name in ("tokenizer.json", "spiece.model")]
    source = next((file for file in files if file.is_file()), None)
    if source is None:
        raise CheckpointError(f"{folder} has no tokenizer; expected tokenizer.json or spiece.model: download it too")
    if source.suffix == ".json":
        with unreadable(source):
            data = source.read_bytes()
    else:
        data = _convert(source)
    try:
        count = Tokenizer(data, ANY_LENGTH).vocabulary
        if count > config.vocab_size:
            data = _without_sentinels(data, config.vocab_size)
            count = Tokenizer(data, ANY_LENGTH).vocabulary
    except BundleError as error:
        raise CheckpointError(f"{source}: {error}") from error
    if count > config.vocab_size:
        raise CheckpointError(
            f"{source} has {count} tokens, the model embeddings for {config.vocab_size}: pass both from one T5"
        )
    return data


def _without_sentinels(data: bytes, vocab_size: int) -> bytes:
    """``data`` less the sentinels for which there is no embedding.

    Tools add 100 of them to every T5 tokenizer, and a T5 that was not pre-trained by filling gaps has none. They must
    not reach the embeddings when a prompt spells one.
    """
    tree = json.loads(data)
    tree["added_tokens"] = [
        token for token in tree["added_tokens"] if token["id"] < vocab_size or not SENTINEL.fullmatch(token["content"])
    ]
    vocabulary = tree["model"]["vocab"]
    if isinstance(vocabulary, list):  # of a unigram model: (piece, score) by id
        while len(vocabulary) > vocab_size and SENTINEL.fullmatch(vocabulary[-1][0]):
            vocabulary.pop()
    return json.dumps(tree, ensure_ascii=False).encode()


def _convert(path: Path) -> bytes:
    """``tokenizer.json`` of the T5 sentencepiece model at ``path``, with the tokenizer settings beside it."""
    require("sentencepiece", "export")
    transformers = require("transformers", "export")
    try:
        with _quiet():
            converted = transformers.T5TokenizerFast.from_pretrained(str(path.parent), local_files_only=True)
            return str(converted.backend_tokenizer.to_str()).encode()
    except Exception as error:  # its parsers raise anything on a damaged file
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path} could not be converted ({reason:.200}); expected the sentencepiece model of a T5: download it"
            " again, or add its tokenizer.json"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers advises its own users on the log."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
