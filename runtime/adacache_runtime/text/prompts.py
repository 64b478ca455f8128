"""Prompts to captions, and captions of all guidance branches to what the model takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from adacache_engines.bundle.files import Bundle
from adacache_engines.contract.engine import Backend
from adacache_engines.errors import BundleError, InputError
from adacache_engines.printable import printable
from adacache_runtime.request import Captions, Request
from adacache_runtime.text.cleaning import CLEANINGS
from adacache_runtime.text.embedding_cache import EmbeddingCache
from adacache_runtime.text.encoder import encode
from adacache_runtime.text.tokenizer import Tokenizer, Tokens

UNCONDITIONAL = "unconditional"


@dataclass(frozen=True)
class Text:
    """The texts of a request, as far as they are known before an encoder runs.

    Attributes:
        prompts: captions, or tokens that are still to be encoded.
        negative: the same of the negative prompts; None for a model that has a caption of its own instead.
        length: number of tokens of the captions that the model gets.
    """

    prompts: Captions | Tokens
    negative: NDArray[np.float32] | Tokens | None
    length: int

    @property
    def tokens(self) -> list[Tokens]:
        """The tokens that are still to be encoded."""
        return [part for part in (self.prompts, self.negative) if isinstance(part, Tokens)]


def read_text(bundle: Bundle, request: Request, order: Sequence[str] | None = None) -> Text:
    """Clean and tokenise the texts of a request.

    Embeddings that are given for all branches, in one length, keep it where a model pads captions with zeros.

    Raises:
        InputError: the bundle has no text encoder for it, or the embeddings of negative prompts are missing or too
            short; says how to get them.
    """
    prompts = request.captions or tokenize(bundle, request.prompts)
    length = caption_length(bundle, prompts.mask)
    given_length = None if request.captions is None else request.captions.embeddings.shape[1]
    zeros = bundle.manifest.text.masking == "zeros"
    guided = UNCONDITIONAL in (order or bundle.manifest.guidance.order)
    if bundle.manifest.guidance.null_captions is not None or not guided:
        if guided:
            null_captions(bundle)  # refused before anything runs where it is not as the manifest says
        return Text(prompts, None, given_length if zeros and given_length else length)
    given = None if request.captions is None else request.captions.negative
    if given is None:
        count = len(prompts.mask)
        texts = request.negative_prompts or ("",)
        return Text(prompts, tokenize(bundle, texts * count if len(texts) == 1 else texts, "negative"), length)
    if zeros:
        return Text(prompts, given, given.shape[1] if given.shape[1] == given_length else length)
    if given.shape[1] < length:
        raise InputError(
            f"the negative embeddings have length {given.shape[1]}, and the prompts' {length} tokens need as many: "
            "encode both with padding to the same length"
        )
    return Text(prompts, given, length)


def tokenize(bundle: Bundle, prompts: Sequence[str], array: str = "embeddings") -> Tokens:
    """Clean and tokenise prompts, as the original pipeline does; ``array`` is the array that can be given instead.

    Raises:
        InputError: the bundle has no text encoder; says how to get one.
    """
    rule = bundle.manifest.text
    if not rule.encoder_stages or rule.tokenizer is None:
        raise InputError(
            f"this bundle has no text encoder; add one with: adacache-export {bundle.folder} --text-encoder DIR (a T5 "
            f"folder), or give the states of an encoder of your own with --text-embeddings FILE.npz (array {array})"
        )
    clean = CLEANINGS[rule.cleaning]
    with bundle.reading(rule.tokenizer) as path:
        tokenizer = Tokenizer.open(path, rule.max_length)
    return tokenizer([clean(prompt) for prompt in prompts])


def caption_length(bundle: Bundle, mask: NDArray[np.bool_]) -> int:
    """Return the number of tokens of the captions that the model gets.

    What is beyond it is cut off; several prompts for a model without a mask keep their padding, and a model that was
    trained with zeros behind a prompt always gets captions of one length.
    """
    rule = bundle.manifest.text
    if rule.masking == "zeros":
        return rule.max_length
    if rule.masking == "cut":
        return int(mask.sum()) if len(mask) == 1 else mask.shape[1]
    return int(np.flatnonzero(mask.any(axis=0)).max()) + 1


def branches(
    bundle: Bundle,
    backend: Backend,
    text: Text,
    cache: EmbeddingCache | None = None,
    order: Sequence[str] | None = None,
) -> Captions:
    """Return the captions of all guidance branches, and their mask; run the text encoder where it must run.

    Args:
        bundle: the opened bundle.
        backend: the backend of the text encoder.
        text: the texts, as far as they are known.
        cache: embeddings on the disk; None = there are none.
        order: branches that a call evaluates, in the order of a batch; None = all of the model's.
    """
    order = order or bundle.manifest.guidance.order
    masking = bundle.manifest.text.masking
    encoded = iter(encode(bundle.manifest.text, backend, text.tokens, cache))
    embeddings = next(encoded) if isinstance(text.prompts, Tokens) else text.prompts.embeddings
    mask, embeddings = text.prompts.mask[:, : text.length], embeddings[:, : text.length]
    if UNCONDITIONAL not in order:
        negative = embeddings[:0]
    elif text.negative is None:  # has the prompt's own mask, as in the original, and so depends on the prompt's length
        negative = np.broadcast_to(null_captions(bundle)[: text.length], embeddings.shape)
    else:
        given = next(encoded) if isinstance(text.negative, Tokens) else text.negative
        negative = given[:, : text.length]
        if masking == "zeros":
            kept = text.negative.mask if isinstance(text.negative, Tokens) else np.ones(negative.shape[:2], np.bool_)
            negative = _zero_padded(negative, kept, text.length)
    if masking == "zeros":
        embeddings = _zero_padded(embeddings, mask, text.length)
        mask = np.ones(embeddings.shape[:2], np.bool_)
    if masking == "cut":
        if len(mask) > 1:
            embeddings = embeddings * mask[:, :, None]
        mask = np.ones_like(mask)
    rows = {"conditional": embeddings, "unconditional": negative}
    return Captions(np.concatenate([rows[name] for name in order]), np.concatenate([mask] * len(order)))


def _zero_padded(embeddings: NDArray[np.float32], mask: NDArray[np.bool_], length: int) -> NDArray[np.float32]:
    """Return embeddings (prompts, ``length``, width) that are zeros where ``mask`` (prompts, tokens) is False."""
    padded = np.zeros((len(embeddings), length, embeddings.shape[2]), np.float32)
    padded[:, : embeddings.shape[1]] = np.where(mask[:, :, None], embeddings, 0)
    return padded


def null_captions(bundle: Bundle) -> NDArray[np.float32]:
    """Return the caption that a model has learned for the unconditional branch, (max_length, width).

    Raises:
        BundleError: the weights have no such caption.
    """
    name, rule = bundle.manifest.guidance.null_captions, bundle.manifest.text
    assert name is not None
    with bundle.reading(bundle.manifest.weights) as path:
        try:
            with safe_open(str(path), framework="np") as file:
                shape = tuple(file.get_slice(name).get_shape()) if name in file.keys() else None  # noqa: SIM118
                values = file.get_tensor(name) if shape == (rule.max_length, rule.width) else None
        except Exception as error:  # the library's errors have no common base
            raise BundleError(f"{path} cannot be read as safetensors ({printable(error)}); export it again") from error
    if values is None:
        raise BundleError(
            f"guidance.null_captions of bundle {bundle.folder} is {name}, which {path.name} "
            f"{f'has with shape {shape}' if shape else 'does not have'}; expected a tensor of shape "
            f"({rule.max_length}, {rule.width}): export the checkpoint again"
        )
    return np.asarray(values, np.float32)
