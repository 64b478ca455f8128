"""A text encoder's states, given by the caller instead of prompts, and the checks that they fit a model."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import Manifest
from adacache_engines.errors import InputError


@dataclass(frozen=True)
class Captions:
    """States of a text encoder for a batch of prompts.

    Attributes:
        embeddings: (prompts, length, width) float32.
        mask: (prompts, length) bool, True = a token; the others are ignored.
        negative: (prompts, length, width) float32 states of the negative prompts, for a model that is guided by them;
            their length may differ from that of ``embeddings``.
    """

    embeddings: NDArray[np.float32]
    mask: NDArray[np.bool_]
    negative: NDArray[np.float32] | None = None

    def first(self, count: int) -> "Captions":
        """Return the states of the first ``count`` prompts."""
        negative = None if self.negative is None else self.negative[:count]
        return Captions(self.embeddings[:count], self.mask[:count], negative)


def check_captions(manifest: Manifest, captions: Captions) -> None:
    """Check that captions have the shapes and values that a model takes.

    Raises:
        InputError: a shape, a mask or a number is not possible; the message has what is expected.
    """
    rule, embeddings, mask = manifest.text, captions.embeddings, captions.mask
    if embeddings.ndim != 3 or embeddings.shape[2] != rule.width or not embeddings.shape[0]:
        raise InputError(f"text embeddings have shape {embeddings.shape}; expected (prompts, length, {rule.width})")
    if not 1 <= embeddings.shape[1] <= rule.max_length:
        raise InputError(f"text embeddings have length {embeddings.shape[1]}; this model takes 1 to {rule.max_length}")
    if mask.shape != embeddings.shape[:2]:
        raise InputError(f"the text mask has shape {mask.shape}; expected {embeddings.shape[:2]}")
    if not mask.any(axis=1).all():
        raise InputError("the text mask of a prompt is all false; at least one token must count")
    if not fits_float32(embeddings):
        raise InputError("the text embeddings contain NaN, infinity or numbers beyond float32; check the encoder")
    negative, samples = captions.negative, embeddings.shape[0]
    if negative is None:
        return
    if negative.ndim != 3 or negative.shape[0] != samples or negative.shape[2] != rule.width:
        raise InputError(f"negative embeddings have shape {negative.shape}; expected ({samples}, length, {rule.width})")
    if not 1 <= negative.shape[1] <= rule.max_length:
        raise InputError(
            f"the negative embeddings have length {negative.shape[1]}; this model takes 1 to {rule.max_length}"
        )
    if not fits_float32(negative):
        raise InputError("the negative embeddings contain NaN, infinity or numbers beyond float32; check the encoder")


def fits_float32(values: NDArray[Any]) -> bool:
    """Return whether all values are finite float32 numbers."""
    return bool((np.abs(values) <= np.finfo(np.float32).max).all())  # False for NaN
