"""The configuration of a Wan transformer, from ``config.json`` and the shapes of the tensors."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from adacache_engines.errors import CheckpointError
from adacache_export.families.config import count_blocks, settle
from adacache_export.frame_rules import FIRST_ALONE_THEN_FOURS

Shape = tuple[int, ...]

CLASSES = ("WanTransformer3DModel", "WanModel")  # of diffusers, and of the original
# names in the original's config.json, and in that of diffusers
SETTINGS = {"num_heads": "num_attention_heads", "in_dim": "in_channels", "out_dim": "out_channels"}
FIRST_AND_LAST = "a model of first and last frames is not supported"
REQUIRED = {
    "qk_norm": ("rms_norm_across_heads", "queries and keys that are normalised otherwise are not supported"),
    "pos_embed_seq_len": (None, FIRST_AND_LAST),
}
PLACES_OF_IMAGES = "condition_embedder.image_embedder.pos_embed"  # tensor of a model of first and last frames
RELEASED_WIDTHS = (1536, 3072, 5120)  # all with heads of 128


@dataclass(frozen=True)
class WanConfig:
    """The fields of ``WanTransformer3DModel``'s ``config.json`` that change its mathematics, under those names."""

    patch_size: tuple[int, int, int] = (1, 2, 2)  # (frames, rows, columns) of the latent
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    eps: float = 1e-6
    rope_max_seq_len: int = 1024
    image_dim: int | None = None  # width of the states of an image that blocks attend to; None = they attend to none

    @property
    def condition_channels(self) -> int:
        """Number of channels of the mask and the encoded video that come beside the latents; 0 = there are none."""
        return self.in_channels - self.out_channels

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def rotary_pairs(self) -> tuple[int, int, int]:
        """Numbers of pairs of a head that rotate by frame, by row and by column."""
        sides = self.attention_head_dim // 6
        return self.attention_head_dim // 2 - 2 * sides, sides, sides


def config_from(given: Mapping[str, Any] | None, shapes: Mapping[str, Shape]) -> WanConfig:
    """Return the configuration, from ``config.json`` where there is one and from the shapes of the tensors.

    Raises:
        CheckpointError: the two contradict each other, a value makes no sense, or the variant is not supported; or
            there is no ``config.json`` and the size is not a released one, so that the number of heads is unknown.
    """
    there = {SETTINGS.get(key, key): value for key, value in (given or {}).items() if value is not None}
    named = there.get("_class_name", CLASSES[0])
    if named not in CLASSES:
        raise CheckpointError(f"config.json describes {named}, which is not supported; expected {CLASSES[0]}")
    if PLACES_OF_IMAGES in shapes:
        raise CheckpointError(f"the weights have {PLACES_OF_IMAGES}: {FIRST_AND_LAST}")
    config = WanConfig(**settle(asdict(WanConfig()), there, _infer(there, shapes), REQUIRED))
    with_video = 2 * config.out_channels + FIRST_ALONE_THEN_FOURS.stretch
    if config.in_channels not in (config.out_channels, with_video):
        raise CheckpointError(
            f"the model takes {config.in_channels} channels and gives {config.out_channels}, which is not supported;"
            f" expected {config.out_channels}, its latents alone, or {with_video}, with a mask and an encoded video"
            " beside them, as Wan2.2-I2V takes them"
        )
    if config.image_dim and not config.condition_channels:
        raise CheckpointError(
            f"the model attends to states of an image, of width {config.image_dim}, and has no channels for an encoded"
            " video beside its latents, which is not supported; expected both, as in Wan2.1-I2V"
        )
    if config.attention_head_dim % 2 or config.attention_head_dim < 6 or config.freq_dim % 2:
        raise CheckpointError(
            f"attention_head_dim {config.attention_head_dim} with freq_dim {config.freq_dim} is not possible; expected"
            " even numbers, and heads of at least 6: check that the checkpoint is Wan's, and download it again"
        )
    return config


def _infer(given: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the fields that the shapes determine, for :func:`adacache_export.families.config.settle`."""

    def axes(key: str, count: int) -> Shape:
        shape = shapes.get(key, ())
        return shape if len(shape) == count and all(shape) else (0,) * count

    inferred: dict[str, Any] = {"num_layers": count_blocks(shapes, ["blocks"])}
    width, channels, *patch = axes("patch_embedding.weight", 5)
    if not width:
        return {field: value for field, value in inferred.items() if value}
    inferred |= {
        "patch_size": tuple(patch),
        "in_channels": channels,
        "out_channels": axes("proj_out.weight", 2)[0] // math.prod(patch),
        "text_dim": axes("condition_embedder.text_embedder.linear_1.weight", 2)[1],
        "freq_dim": axes("condition_embedder.time_embedder.linear_1.weight", 2)[1],
        "ffn_dim": axes("blocks.0.ffn.net.0.proj.weight", 2)[0],
        "image_dim": axes("condition_embedder.image_embedder.norm1.weight", 1)[0],
    }
    inferred |= _heads(given, width)
    inferred = {field: value for field, value in inferred.items() if value}
    return {**inferred, "cross_attn_norm": any(name.endswith(".norm2.weight") for name in shapes)}


def _heads(given: Mapping[str, Any], width: int) -> dict[str, int]:
    """Return the number of heads and their width, which the tensors do not show.

    Raises:
        CheckpointError: nothing tells it.
    """
    heads, head_width = given.get("num_attention_heads"), given.get("attention_head_dim")
    if heads is None and head_width is None:
        if width not in RELEASED_WIDTHS:
            raise CheckpointError(
                f"the weights are {width} wide, the released ones {', '.join(map(str, RELEASED_WIDTHS))}, and the"
                " number of attention heads is not in the weights: pass their config.json, in one folder with them or"
                " with --config FILE"
            )
        head_width = WanConfig().attention_head_dim
    if head_width is None and isinstance(heads, int) and heads > 0 and width % heads == 0:
        head_width = width // heads
    if not isinstance(head_width, int) or head_width < 1:
        return {}
    return {"attention_head_dim": head_width, "num_attention_heads": width // head_width}
