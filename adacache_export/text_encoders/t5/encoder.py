"""T5, mT5 and T5 1.1 as a kind of text encoder: the stages, and where a folder's tensors belong."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adacache_engines.bundle.tensors import DType, TensorSpec
from adacache_export.stages import OUT, Stage
from adacache_export.text_encoders.t5 import modules
from adacache_export.text_encoders.t5.modules import Block, Embed, Final, T5Config

PREFIX = "text_encoder."  # begins the keys of the encoder's weights in the bundle
EMBEDDINGS = "shared.weight"
SAME_EMBEDDINGS = ("encoder.embed_tokens.weight", "embed_tokens.weight")  # the same tensor under the stack's names
OTHER_HALF = ("decoder.", "lm_head.")
# T5 does not scale scores: at 40, float32's rounding of one moves its weight by some 1e-5. 9e-6 with random weights
TOLERANCE = 2e-4

FLOAT32_IN_FLOAT16 = modules.FLOAT32_IN_FLOAT16
config_from = T5Config.from_json


def stages(config: T5Config, precision: DType) -> tuple[Stage, ...]:
    """Return the stages ``encoder.embed``, ``encoder.00``, ``encoder.01``, ..., ``encoder.final``."""
    with torch.device("meta"):
        embed, block = Embed(config), Block(config)
    bias = TensorSpec(name="bias", dtype=exchanged(precision), axes=("batch", config.num_heads, "text", "text"))
    return chain(config, precision, embed, block, bias)


def exchanged(precision: DType) -> DType:
    """Return the dtype of what blocks exchange.

    It is float32 in a float16 encoder, because the hidden states go beyond the range of float16.
    """
    return "float32" if precision == "float16" else precision


def chain(
    config: T5Config, precision: DType, embed: nn.Module, block: nn.Module, shared: TensorSpec
) -> tuple[Stage, ...]:
    """Return the stages of an encoder whose blocks have the same graph.

    Args:
        config: configuration of the encoder.
        precision: dtype of the stages' weights.
        embed: module from tokens and mask to hidden states and ``shared``.
        block: module of a block, from hidden states and ``shared`` to hidden states.
        shared: tensor that all blocks get beside the hidden states.
    """
    states: tuple[int | str, ...] = ("batch", "text", config.d_model)
    tokens, mask = (TensorSpec(name=n, dtype=t, axes=states[:2]) for n, t in (("tokens", "int64"), ("mask", "bool")))
    hidden = TensorSpec(name="hidden", dtype=exchanged(precision), axes=states)
    captions = TensorSpec(name="captions", dtype="float32", axes=states)
    after = hidden.model_copy(update={"name": hidden.name + OUT})
    with torch.device("meta"):
        final = Final(config)
    tolerance = TOLERANCE if precision == "float32" else None
    return (
        Stage("encoder.embed", "encoder.embed", embed, PREFIX, (tokens, mask), (hidden, shared)),
        *(
            Stage(
                f"encoder.{i:02d}",
                "encoder.block",
                block,
                f"{PREFIX}encoder.block.{i}.",
                (hidden, shared),
                (after,),
                tolerance=tolerance,
            )
            for i in range(config.num_layers)
        ),
        Stage("encoder.final", "encoder.final", final, f"{PREFIX}encoder.", (hidden,), (captions,)),
    )


def tensors(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's tensors under the stages' keys.

    The decoder of a whole T5 and the copies of tied embeddings are left out. A stack that was saved by itself gets the
    name of its place in a T5.
    """
    stacked = any(name.startswith("encoder.") for name in given)
    found: dict[str, Tensor] = {}
    for name, tensor in given.items():
        if not name.startswith(OTHER_HALF) and name != EMBEDDINGS and name not in SAME_EMBEDDINGS:
            found[PREFIX + name if stacked else f"{PREFIX}encoder.{name}"] = tensor
    for name in (EMBEDDINGS, *SAME_EMBEDDINGS):
        if name in given:
            return {PREFIX + EMBEDDINGS: given[name], **found}
    return found
