"""T5, mT5 and T5 1.1 as a kind of text encoder: the stages, and where a folder's tensors belong."""

from collections.abc import Mapping

import torch
from torch import Tensor

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
    """Return the stages ``encoder.embed``, ``encoder.00``, ``encoder.01``, ..., ``encoder.final``.

    What blocks exchange is float32 in a float16 encoder, because it goes beyond the range of float16.
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


def _specs(config: T5Config, precision: DType) -> dict[str, TensorSpec]:
    kinds: dict[str, tuple[DType, tuple[int | str, ...]]] = {
        "tokens": ("int64", ("batch", "text")),
        "mask": ("bool", ("batch", "text")),
        "hidden": (precision, ("batch", "text", config.d_model)),
        "bias": (precision, ("batch", config.num_heads, "text", "text")),
        "captions": ("float32", ("batch", "text", config.d_model)),
    }
    return {name: TensorSpec(name=name, dtype=dtype, axes=axes) for name, (dtype, axes) in kinds.items()}
