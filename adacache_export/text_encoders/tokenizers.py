"""The tokenizer of a text encoder, in the one form that the runtime reads: ``tokenizer.json``."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adacache_engines.errors import BundleError, CheckpointError, require
from adacache_export.checkpoint.formats import unreadable
from adacache_runtime.text.tokenizer import Tokenizer

SENTINEL = re.compile(r"<extra_id_\d+>")  # marks a gap in T5's pre-training
ANY_LENGTH = 300  # tokens; only to see whether a tokenizer is usable


def tokenizer_of(folder: Path, vocab_size: int) -> bytes:
    """Return the content of ``tokenizer.json`` for a text encoder.

    It is taken from the encoder's folder or, as diffusers lays it out, from ``tokenizer`` beside that folder; or it is
    made from the ``spiece.model`` there.

    Args:
        folder: folder of the encoder.
        vocab_size: number of tokens that the encoder has embeddings for.

    Raises:
        CheckpointError: there is no tokenizer, it is damaged, or it has tokens without embeddings.
        MissingDependencyError: a ``spiece.model`` has to be converted and transformers is not installed.
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
        data = _converted(source)
    try:
        count = Tokenizer(data, ANY_LENGTH).vocabulary
        if count > vocab_size:
            data = _without_sentinels(data, vocab_size)
            count = Tokenizer(data, ANY_LENGTH).vocabulary
    except BundleError as error:
        raise CheckpointError(f"{source}: {error}") from error
    if count > vocab_size:
        raise CheckpointError(
            f"{source} has {count} tokens, the model embeddings for {vocab_size}: pass both from one model"
        )
    return data


def _without_sentinels(data: bytes, vocab_size: int) -> bytes:
    """Return a ``tokenizer.json`` without the sentinels for which there is no embedding.

    Tools add 100 sentinels to every T5 tokenizer, and a T5 that was not pre-trained by filling gaps has none. They must
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


def _converted(path: Path) -> bytes:
    """Return the ``tokenizer.json`` of the sentencepiece model at ``path``, with the tokenizer settings beside it."""
    sentencepiece = require("sentencepiece", "export")
    transformers = require("transformers", "export")
    try:
        with _quiet():
            converted = transformers.T5TokenizerFast.from_pretrained(str(path.parent), local_files_only=True)
            data = str(converted.backend_tokenizer.to_str())
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        if not any(pieces.is_byte(token) for token in range(pieces.get_piece_size())):
            return data.encode()
        return _with_byte_fallback(data)
    except Exception as error:  # its parsers raise anything on a damaged file
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path} could not be converted ({reason:.200}); expected the sentencepiece model of a T5: download it"
            " again, or add its tokenizer.json"
        ) from error


def _with_byte_fallback(data: str) -> bytes:
    """Return a ``tokenizer.json`` that spells characters without a piece in bytes, which the conversion forgets."""
    tree = json.loads(data)
    tree["model"]["byte_fallback"] = True
    return json.dumps(tree, ensure_ascii=False).encode()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the advice that transformers logs for its own users."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
