"""Prompts to the token ids that a text encoder reads, from a ``tokenizer.json`` and without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray

from adacache_engines.errors import BundleError, InputError

T5_PADDING = {"pad_id": 0, "pad_token": "<pad>"}  # where the file does not say how it pads


class Tokens(NamedTuple):
    """The input of a text encoder.

    Attributes:
        ids: (prompts, length) int64.
        mask: (prompts, length) bool, True = a token, False = padding.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.bool_]


class Tokenizer:
    """A tokenizer of at most ``length`` tokens a prompt, the last of them the end of sequence; shorter ones are padded.

    Safe to share between threads: a call changes nothing.
    """

    def __init__(self, data: bytes, length: int) -> None:
        """Read a tokenizer.

        Args:
            data: content of a ``tokenizer.json``.
            length: number of tokens per prompt, the end of sequence included; Open-Sora uses 300.

        Raises:
            BundleError: ``data`` is no tokenizer, or one that does not end a sequence with a token of its own.
            InputError: ``length`` leaves no room for a token.
        """
        self._tokenizer = _parse(data)
        self.length = length
        special = self._tokenizer.num_special_tokens_to_add(False)
        if special < 1:
            # without one an empty prompt has no tokens, and attention over no tokens is NaN
            raise BundleError("tokenizer.json appends no end-of-sequence token; expected the one of a T5 model")
        if length <= special:
            raise InputError(f"{length} tokens a prompt leave no room for text; expected at least {special + 1}")
        padding = self._tokenizer.padding or T5_PADDING
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length, pad_id=padding["pad_id"], pad_token=padding["pad_token"])

    @classmethod
    def open(cls, path: Path, length: int) -> "Tokenizer":
        """Read a tokenizer from a ``tokenizer.json`` file.

        Raises:
            BundleError, InputError: as in the constructor; also where the file cannot be read.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error
        try:
            return cls(data, length)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from error

    @property
    def vocabulary(self) -> int:
        """Number of embeddings that an encoder must have: every id is below it."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Return the tokens of prompts that are already cleaned.

        Raises:
            InputError: a prompt is not text; names it by its place.
        """
        if isinstance(prompts, str):
            raise InputError("one prompt came where a list of prompts was expected")
        encodings = [self._encode(place, prompt) for place, prompt in enumerate(prompts)]
        shape = (len(encodings), self.length)
        ids = np.array([encoding.ids for encoding in encodings], np.int64).reshape(shape)
        mask = np.array([encoding.attention_mask for encoding in encodings], np.bool_).reshape(shape)
        return Tokens(ids, mask)

    def _encode(self, place: int, prompt: str) -> tokenizers.Encoding:
        try:
            return self._tokenizer.encode(prompt)
        except TypeError as error:  # not a string, or one with half a surrogate pair
            raise InputError(f"prompt {place} is not valid text ({prompt!r:.60}): write it anew") from error


def _parse(data: bytes) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library's Rust panics are no Exceptions
        raise BundleError(f"tokenizer.json is damaged or of an unknown kind ({error!s:.200})") from error
