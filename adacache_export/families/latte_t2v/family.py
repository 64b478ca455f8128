"""Tensors, configuration and stages of LatteT2V, which Latte-1 and Open-Sora-Plan 1.1 share.

Their checkpoints have the same tensors, so that only ``config.json`` tells them apart.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from adacache_engines.bundle.manifest import (
    ExportGranularity,
    FrameRule,
    GuidanceRule,
    LatentSpace,
    SamplerDefaults,
    TextRule,
    VideoDefaults,
    VideoNames,
)
from adacache_engines.bundle.tensors import DType, TensorSpec
from adacache_engines.errors import CheckpointError
from adacache_export.costs import TOKENS
from adacache_export.families.config import count_blocks, settle
from adacache_export.families.description import PIXEL_CHANNELS, PROMPTS, VAE_SPATIAL_FACTOR, Description, presets
from adacache_export.families.diffusers_layers import TextProjection
from adacache_export.families.latte_t2v.transformer import (
    MLP_RATIO,
    Block,
    Embed,
    Final,
    LatteT2VConfig,
    Positions,
)
from adacache_export.families.residual_block import Parts
from adacache_export.frame_rules import EACH_FRAME
from adacache_export.stages import (
    Stage,
    block_stages,
    embed_stage,
    final_stage,
    positions_stage,
    tensor_specs,
    text_stage,
    weight_shapes,
)

Shape = tuple[int, ...]

SIGNATURE_KEYS: tuple[str, ...] = (
    "pos_embed.proj.weight",
    "adaln_single.linear.weight",
    "caption_projection.linear_1.weight",
    "transformer_blocks.0.attn2.to_q.weight",
    "temporal_transformer_blocks.0.attn1.to_q.weight",
)
OPTIONAL_KEYS: tuple[str, ...] = ("caption_projection.y_embedding",)  # used in training only; it may have any length
PARTS = Block.PARTS
BLOCK_LISTS = {"spatial": "transformer_blocks", "temporal": "temporal_transformer_blocks"}
REQUIRED = {
    "use_rope": (False, "rotary positions are not supported: the released models have none"),
    "compress_kv_factor": (1, "attention to compressed keys is not supported: the released models have none"),
    "activation_fn": ("gelu-approximate", "another activation than the tanh form of GELU is not supported"),
    "norm_type": ("ada_norm_single", "another normalisation is not supported"),
    "norm_elementwise_affine": (False, "normalisation with weights of its own is not supported"),
    "attention_bias": (True, "attention without biases is not supported"),
    "only_cross_attention": (False, "blocks without self-attention are not supported"),
    "double_self_attention": (False, "blocks with two self-attentions are not supported"),
    "patch_size_t": (1, "patches of several frames are not supported"),
}
LARGEST = 240  # largest number of latent rows or columns: 1920 pixels
GUIDANCE = 7.5


def config_from(
    given: Mapping[str, Any] | None,
    shapes: Mapping[str, Shape],
    usual: LatteT2VConfig,
    temporal_scale: Callable[[int], float],
) -> LatteT2VConfig:
    """Return the configuration, from ``config.json`` where there is one and from the shapes of the tensors.

    Args:
        given: content of ``config.json``, None without one.
        shapes: shapes of the checkpoint's tensors, by name.
        usual: the released configuration.
        temporal_scale: function from a clip's number of latent frames to ``interpolation_scale_1d``, used where
            ``config.json`` does not give that.

    Raises:
        CheckpointError: the two contradict each other, a value makes no sense, or the variant is not supported; or
            there is no ``config.json`` and the size is not the released one, so that the number of heads is unknown.
    """
    there = {key: value for key, value in (given or {}).items() if value is not None}
    side = there.get("sample_size")
    if isinstance(side, int):
        there["sample_size"] = [side, side]
    config = LatteT2VConfig(**settle(asdict(usual), there, _infer(there, shapes, usual), REQUIRED))
    if config.width % 4:
        raise CheckpointError(
            f"a width of {config.width} is not possible; expected a multiple of 4: check that the checkpoint is a"
            " LatteT2V, and download it again"
        )
    rows, *_ = shapes.get("transformer_blocks.0.ff.net.0.proj.weight") or (0,)
    if rows == 2 * MLP_RATIO * config.width:
        raise CheckpointError(
            "the weights are those of a GEGLU, which is not supported; expected GELU's, half as many: check that the"
            " checkpoint is one of the released models"
        )
    if "interpolation_scale_1d" not in there:
        config = replace(config, interpolation_scale_1d=temporal_scale(config.video_length))
    return config


def _infer(given: Mapping[str, Any], shapes: Mapping[str, Shape], usual: LatteT2VConfig) -> dict[str, Any]:
    """Return the fields that the shapes determine, for :func:`adacache_export.families.config.settle`."""

    def axes(key: str, count: int) -> Shape:
        shape = shapes.get(key, ())
        return shape if len(shape) == count and all(shape) else (0,) * count

    layers = count_blocks(shapes, BLOCK_LISTS.values())
    inferred: dict[str, Any] = {"num_layers": layers} if layers else {}
    width, channels, patch, _ = axes("pos_embed.proj.weight", 4)
    if not width:
        return inferred
    heads = {key: given[key] for key in ("num_attention_heads", "attention_head_dim") if key in given}
    if not heads and width != usual.width:
        raise CheckpointError(
            f"the weights are {width} wide, the released ones {usual.width}, and the number of attention heads is not"
            " in the weights: pass their config.json, in one folder with them or with --config FILE"
        )
    head_width = heads.get("attention_head_dim", usual.attention_head_dim)
    if "attention_head_dim" not in heads and isinstance(heads.get("num_attention_heads"), int):
        head_width = width // max(heads["num_attention_heads"], 1)
        inferred["attention_head_dim"] = head_width
    if isinstance(head_width, int) and head_width > 0:
        inferred["num_attention_heads"] = width // head_width if width % head_width == 0 else 0
    inferred |= {
        "in_channels": channels,
        "patch_size": patch,
        "out_channels": axes("proj_out.weight", 2)[0] // patch**2,
        "caption_channels": axes("caption_projection.linear_1.weight", 2)[1],
    }
    return {field: value for field, value in inferred.items() if value}


def expected(config: LatteT2VConfig) -> dict[str, Shape]:
    """Return the shape of every tensor of a checkpoint, by name."""
    with torch.device("meta"):
        return weight_shapes(stages(config))


def constants(config: LatteT2VConfig) -> dict[str, torch.Tensor]:  # noqa: ARG001 - positions are not stored
    return {}


def stages(
    config: LatteT2VConfig,
    sites: tuple[str, ...] = (),
    precision: DType = "float32",
    granularity: ExportGranularity = "block",
    masked: bool = False,
) -> list[Stage]:
    """Return the model's stages in the order in which a call runs them, with zero weights.

    Args:
        config: configuration of the model.
        sites: sites to probe, such as ``temporal.13.attn``.
        precision: dtype of the activations.
        granularity: whether a stage is a whole block or one of its residual parts.
        masked: whether spatial attention takes ``token_mask`` (B, T, S), as in Open-Sora-Plan's training; in inference
            all of it would be True, so that bundles do without.
    """
    spec = tensor_specs(config.in_channels, config.out_channels, config.width, config.caption_channels, precision)
    spec["token_mask"] = TensorSpec(name="token_mask", dtype="bool", axes=TOKENS)
    spec |= {
        name: TensorSpec(name=name, dtype="float32", axes=(axis, config.width))
        for name, axis in (("position_tokens", "tokens"), ("position_frames", "patch_frames"))
    }

    def block(kind: str, index: int) -> list[Stage]:
        first = kind == "temporal" and index == 0

        def make(parts: Parts, here: tuple[str, ...]) -> Block:
            return Block(config, kind, parts, here, first and "attn" in parts, masked and kind == "spatial")

        prefix = f"{BLOCK_LISTS[kind]}.{index}."
        made = block_stages(kind, index, PARTS[kind], make, prefix, spec, sites, granularity)
        return [replace(made[0], traced_as=f"{made[0].traced_as}+positions"), *made[1:]] if first else made

    embedded = (spec["latents"], spec["timestep"], spec["position_tokens"])
    final = (spec["hidden"], spec["time"], spec["latents"])
    tables = (spec["position_tokens"], spec["position_frames"])
    return [
        text_stage(TextProjection(config.caption_channels, config.width), "caption_projection.", spec),
        positions_stage(Positions(config), (spec["latents"],), tables),
        embed_stage(lambda probed: Embed(config, probed), embedded, spec, sites),
        *(stage for index in range(config.num_layers) for kind in BLOCK_LISTS for stage in block(kind, index)),
        final_stage(Final(config), "", final, spec),
    ]


def describe(
    family: Path,
    config: LatteT2VConfig,
    video: VideoDefaults,
    latent: LatentSpace,
    sampler: SamplerDefaults,
    image: bool,
) -> Description:
    """Describe a model that makes clips of any size, of the one length that its temporal positions are for.

    Guidance is [negative prompt; prompt], on T5 states that are cut to the prompt's tokens; the probe is the temporal
    attention of the middle block.

    Args:
        family: folder of the family, with its presets.
        config: configuration of the model.
        video: the video that a request makes unless it says otherwise.
        latent: latent space of the model.
        sampler: the sampler and its settings.
        image: whether the model also makes single frames.
    """
    patch = config.patch_size
    sizes = {"height": (patch, LARGEST), "width": (patch, LARGEST)}
    usual = {"samples": (1, PROMPTS), "text": (1, config.model_max_length), **sizes}
    lengths = {"clip": config.video_length, **({"image": 1} if image else {})}
    return Description(
        sampler=sampler,
        video=video,
        names=names(video),
        guidance=GuidanceRule(order=("unconditional", "conditional"), null_captions=None),
        latent=latent,
        text=TextRule(
            max_length=config.model_max_length,
            width=config.caption_channels,
            cleaning="html-and-captions",
            masking="cut",
        ),
        profiles={name: {**usual, "frames": (length, length)} for name, length in lengths.items()},
        probe=f"temporal.{(config.num_layers - 1) // 2}.attn",
        policies=presets(family),
    )


def names(video: VideoDefaults) -> VideoNames:
    """Return a name for the size that the model was trained at; there is one length only, which needs no name."""
    return VideoNames(sizes={f"{video.height}p": {"1:1": (video.width, video.height)}}, aspect="1:1")


def latent_space(config: LatteT2VConfig, frames: FrameRule, spatial_factor: int = VAE_SPATIAL_FACTOR) -> LatentSpace:
    """Return the latent space of a VAE with this ``frames`` rule; a model of three channels works on pixels."""
    pixels = config.in_channels == PIXEL_CHANNELS
    return LatentSpace(
        channels=config.in_channels,
        patch=(1, config.patch_size, config.patch_size),
        spatial_factor=1 if pixels else spatial_factor,
        frames=EACH_FRAME if pixels else frames,
        decoder="pixels" if pixels else "none",
        whole_patches=True,
    )
