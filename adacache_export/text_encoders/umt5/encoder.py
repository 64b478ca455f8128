"""UMT5 as a kind of text encoder: the stages, and where a folder's tensors belong."""

import torch

from adacache_engines.bundle.tensors import DType, TensorSpec
from adacache_export.stages import Stage
from adacache_export.text_encoders.t5 import encoder as t5
from adacache_export.text_encoders.t5.modules import T5Config
from adacache_export.text_encoders.umt5.modules import Block, Embed

FLOAT32_IN_FLOAT16 = t5.FLOAT32_IN_FLOAT16
config_from = t5.config_from
tensors = t5.tensors  # the position biases have their blocks' names, so that no place differs from T5's


def stages(config: T5Config, precision: DType) -> tuple[Stage, ...]:
    """Return the stages ``encoder.embed``, ``encoder.00``, ``encoder.01``, ..., ``encoder.final``."""
    dtype = t5.exchanged(precision)
    with torch.device("meta"):
        embed, block = Embed(config, getattr(torch, dtype)), Block(config)
    padding = TensorSpec(name="padding", dtype=dtype, axes=("batch", 1, 1, "text"))
    return t5.chain(config, precision, embed, block, padding)
