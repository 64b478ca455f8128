"""CLIP's vision model as a kind of image encoder: the stages, and where a folder's tensors belong.

The states are those before the last layer, as video models take them: that layer, and what follows it, is left out.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from adacache_engines.bundle.tensors import TensorSpec
from adacache_export.image_encoders.clip.modules import ClipVisionConfig, Embed, Layer
from adacache_export.stages import OUT, Stage

PREFIX = "image_encoder."  # begins the names of the stages, and the keys of their weights in the bundle
STACK = "vision_model."  # begins names of tensors where a whole CLIP was saved, and in older files
UNUSED = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "post_layernorm.")
LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
INDICES = "embeddings.position_ids"  # 0, 1, 2, ..., in older files

config_from = ClipVisionConfig.from_json


def stages(config: ClipVisionConfig) -> tuple[Stage, ...]:
    """Return the stages ``image_encoder.embed``, ``image_encoder.00``, ``image_encoder.01``, ..."""
    with torch.device("meta"):
        embed, layer = Embed(config), Layer(config)
    side = config.image_size
    pixels = TensorSpec(name="pixels", dtype="float32", axes=(1, config.num_channels, side, side))
    hidden = TensorSpec(name="hidden", dtype="float32", axes=(1, config.tokens, config.hidden_size))
    after = hidden.model_copy(update={"name": hidden.name + OUT})
    first = Stage(f"{PREFIX}embed", f"{PREFIX}embed", embed, PREFIX, (pixels,), (hidden,))
    layers = (
        Stage(
            f"{PREFIX}{index:02d}",
            f"{PREFIX}layer",
            layer,
            f"{PREFIX}encoder.layers.{index}.",
            (hidden,),
            (after,),
        )
        for index in range(config.num_hidden_layers - 1)
    )
    return (first, *layers)


def tensors(config: ClipVisionConfig, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that the stages need, under their keys; those of the last layer and behind it are left out."""
    found: dict[str, Tensor] = {}
    for name, tensor in given.items():
        own = name.removeprefix(STACK)
        layer = LAYER.match(own)
        last = layer is not None and int(layer[1]) == config.num_hidden_layers - 1
        if not (last or own.startswith(UNUSED) or own == INDICES):
            found[PREFIX + own] = tensor
    return found
