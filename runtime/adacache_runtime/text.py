"""Prompts to captions, and captions of all guidance branches to what the model takes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from adacache_engines.base import Backend
from adacache_engines.bundle import Bundle
from adacache_engines.errors import InputError
from adacache_engines.tensors import NUMPY_DTYPES
from adacache_runtime.request import Captions
from adacache_runtime.text_cleaning import clean_twice
from adacache_runtime.tokenizer import Tokenizer, Tokens


def tokenize(bundle: Bundle, prompts: Sequence[str]) -> Tokens:
    """Cleans and tokenises prompts, as the original pipeline does.

    Raises:
        InputError: the bundle has no text encoder; says how to get one.
    """
    rule = bundle.manifest.text
    if rule.encoder is None or rule.tokenizer is None:
        raise InputError(
            "this bundle has no text encoder; export the checkpoint with --text-encoder DIR (a T5 folder), or give "
            "the states of an encoder of your own with --text-embeddings FILE.npz"
        )
    return Tokenizer.open(bundle.path(rule.tokenizer), rule.max_length)([clean_twice(prompt) for prompt in prompts])


def encode(bundle: Bundle, backend: Backend, tokens: Tokens) -> Captions:
    """Runs the bundle's text encoder, which must be there.

    The encoder is loaded for the call and let go of: it is often larger than the model.
    """
    rule, device = bundle.manifest.text, backend.device
    assert rule.encoder is not None
    sizes = {"batch": len(tokens.ids), "text": rule.max_length}
    values = {"tokens": tokens.ids, "mask": tokens.mask}
    buffers = {
        spec.name: device.empty(spec.shape(sizes), NUMPY_DTYPES[spec.dtype])
        for spec in (*rule.encoder.inputs, *rule.encoder.outputs)
    }
    for name, value in values.items():
        buffers[name].write(value)
    backend.load(rule.encoder).bind(buffers)()
    return Captions(buffers["captions"].read().astype(np.float32), tokens.mask)


def caption_length(mask: NDArray[np.bool_]) -> int:
    """Of the longest prompt, in tokens; what is beyond is cut off."""
    return int(np.flatnonzero(mask.any(axis=0)).max()) + 1


def null_captions(bundle: Bundle) -> NDArray[np.float32]:
    """What the unconditional branch gets for text: (max_length, width)."""
    with safe_open(str(bundle.path(bundle.manifest.weights)), framework="np") as file:
        values: NDArray[np.float32] = file.get_tensor(bundle.manifest.guidance.null_captions).astype(np.float32)
    return values


def branch(bundle: Bundle, captions: Captions) -> Captions:
    """Captions of all guidance branches in the model's order, cut to the longest prompt.

    The unconditional branch has the prompt's own mask, as in the original, so its result depends on the prompt's
    length.
    """
    length = caption_length(captions.mask)
    mask = captions.mask[:, :length]
    null = np.broadcast_to(null_captions(bundle)[:length], captions.embeddings[:, :length].shape)
    rows = {"conditional": captions.embeddings[:, :length], "unconditional": null}
    order = bundle.manifest.guidance.order
    return Captions(np.concatenate([rows[name] for name in order]), np.concatenate([mask] * len(order)))
