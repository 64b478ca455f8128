"""Wan 2.1 and 2.2: text to video and image to video, by one transformer, or by two experts for high and low noise.

Source: Wan-Video/Wan2.1 and Wan-Video/Wan2.2, ``wan/configs``, and the pipelines of diffusers, ``WanPipeline`` and
``WanImageToVideoPipeline``.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adacache_engines.bundle.manifest import (
    VIDEO_CONDITION,
    X_MASK,
    Expert,
    ExportGranularity,
    GuidanceRule,
    LatentSpace,
    TextRule,
)
from adacache_engines.bundle.tensors import DType, TensorSpec
from adacache_engines.errors import CheckpointError
from adacache_export.families.config import count_blocks, settle
from adacache_export.families.description import PROMPTS, Description, PipelineConfigs, presets
from adacache_export.families.diffusers_layers import TextProjection
from adacache_export.families.residual_block import Parts
from adacache_export.families.schedulers import CLASS, sampler_of
from adacache_export.families.wan.published import FLOW, IMAGE_TO_VIDEO, NAMES, Release, published, translated
from adacache_export.families.wan.transformer import (
    TEXT_KEYS,
    Block,
    Embed,
    EmbedWithVideo,
    Final,
    Positions,
    TextKeys,
    WanConfig,
)
from adacache_export.frame_rules import FIRST_ALONE_THEN_FOURS
from adacache_export.stages import (
    Stage,
    block_stages,
    block_text_stage,
    embed_stage,
    final_stage,
    positions_stage,
    tensor_specs,
    text_stage,
    weight_shapes,
)
from adacache_runtime.caching.policy import TIME, TIME_MODULATION

Shape = tuple[int, ...]

NAME = "wan"
FOLDER = Path(__file__).parent
SIGNATURE_KEYS: tuple[str, ...] = (
    "patch_embedding.weight",
    "condition_embedder.time_proj.weight",
    "condition_embedder.text_embedder.linear_1.weight",
    "blocks.0.attn1.norm_q.weight",
    "blocks.0.ffn.net.0.proj.weight",
)
OPTIONAL_KEYS: tuple[str, ...] = ()
FLOAT32 = (".time_embedder.", "scale_shift_table", ".norm2.")  # in names of weights that the original keeps so
CLASSES = ("WanTransformer3DModel", "WanModel")  # of diffusers, and of the original
KIND = "joint"  # of all blocks: attention is among all tokens of all frames
PARTS: Mapping[str, Parts] = {KIND: Block.PARTS}
BLOCK_INPUT = f"{KIND}.0.modulated"
REQUIRED = {
    "qk_norm": ("rms_norm_across_heads", "queries and keys that are normalised otherwise are not supported"),
    "image_dim": (None, "Wan2.1-I2V is not supported; Wan2.2-I2V and TI2V start from an image without it"),
    "added_kv_proj_dim": (None, "Wan2.1-I2V, whose cross attention takes states of an image, is not supported"),
    "pos_embed_seq_len": (None, "a model of first and last frames is not supported"),
}
IMAGE_EMBEDDERS = ("img_emb.", "condition_embedder.image_embedder.")  # prefixes of tensors of Wan2.1-I2V
RELEASED_WIDTHS = (1536, 3072, 5120)  # all with heads of 128
MAX_LENGTH = 512  # text tokens
LARGEST = {"frames": 128, "height": 240, "width": 240}  # latent: 509 frames, 1920 pixels where 8 are a row
TRAIN_TIMESTEPS = 1000  # timestep of pure noise


def told_by(config: Mapping[str, Any] | None) -> bool:  # noqa: ARG001 - no other family has these tensors
    return True


def config_from(given: Mapping[str, Any] | None, shapes: Mapping[str, Shape]) -> WanConfig:
    """Return the configuration, from ``config.json`` where there is one and from the shapes of the tensors.

    Raises:
        CheckpointError: the two contradict each other, a value makes no sense, or the variant is not supported; or
            there is no ``config.json`` and the size is not a released one, so that the number of heads is unknown.
    """
    there = translated({key: value for key, value in (given or {}).items() if value is not None})
    named = there.get("_class_name", CLASSES[0])
    if named not in CLASSES:
        raise CheckpointError(f"config.json describes {named}, which is not supported; expected {CLASSES[0]}")
    if any(name.startswith(IMAGE_EMBEDDERS) for name in shapes):
        raise CheckpointError(f"the model attends to CLIP states of an image: {REQUIRED['image_dim'][1]}")
    config = WanConfig(**settle(asdict(WanConfig()), there, _infer(there, shapes), REQUIRED))
    with_video = 2 * config.out_channels + FIRST_ALONE_THEN_FOURS.stretch
    if config.in_channels not in (config.out_channels, with_video):
        raise CheckpointError(
            f"the model takes {config.in_channels} channels and gives {config.out_channels}, which is not supported;"
            f" expected {config.out_channels}, its latents alone, or {with_video}, with a mask and an encoded video"
            " beside them, as Wan2.2-I2V takes them"
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


def expected(config: WanConfig) -> dict[str, Shape]:
    """Return the shape of every tensor of a checkpoint, by name."""
    with torch.device("meta"):
        return weight_shapes(stages(config))


def constants(config: WanConfig) -> dict[str, Tensor]:  # noqa: ARG001 - positions are not stored
    return {}


def stages(
    config: WanConfig,
    sites: tuple[str, ...] = (),
    precision: DType = "float32",
    granularity: ExportGranularity = "block",
    conditioned: bool = False,
) -> list[Stage]:
    """Return the stages of one transformer in the order in which a call runs them, with zero weights.

    Where the configuration has channels for it, ``embed`` takes an encoded video beside the latents.

    Args:
        config: configuration of the model.
        sites: sites to probe, such as ``joint.14.attn``.
        precision: dtype of the activations.
        granularity: whether a stage is a whole block or one of its residual parts.
        conditioned: whether frames may be given and kept: ``embed`` then takes ``x_mask`` (B, T'), and each frame has a
            modulation of its own.
    """
    channels, width = config.out_channels, config.width
    spec = tensor_specs(channels, channels, width, config.text_dim, precision)
    by_frame, by_row, by_column = config.rotary_pairs
    frames = ("batch", "patch_frames")
    for name, dtype, axes in (
        ("rotary_frames", "float32", ("patch_frames", 2, by_frame)),
        ("rotary_tokens", "float32", ("tokens", 2, by_row + by_column)),
        (X_MASK, "bool", frames),
        (VIDEO_CONDITION, "float32", (1, config.condition_channels, "frames", "height", "width")),
        *((name, precision, ("batch", "text", width)) for name in TEXT_KEYS),
    ):
        spec[name] = TensorSpec.model_validate({"name": name, "dtype": dtype, "axes": axes})
    if conditioned:
        for name, rest in (("modulation", (6, width)), ("time", (width,))):
            spec[name] = spec[name].model_copy(update={"axes": (*frames, *rest)})

    def named(*names: str) -> tuple[TensorSpec, ...]:
        return tuple(spec[name] for name in names)

    def block(index: int) -> list[Stage]:
        def make(parts: Parts, here: tuple[str, ...]) -> Block:
            return Block(config, parts, here)

        return block_stages(KIND, index, Block.PARTS, make, f"blocks.{index}.", spec, sites, granularity)

    def text_keys(index: int) -> Stage:
        prefix = f"blocks.{index}.attn2."
        return block_text_stage(KIND, index, TextKeys(config), prefix, named(*TEXT_KEYS), spec)

    embed: type[Embed] = EmbedWithVideo if config.condition_channels else Embed
    conditions = [VIDEO_CONDITION] if config.condition_channels else [X_MASK] if conditioned else []
    entering = named("latents", "timestep", *conditions)
    return [
        text_stage(TextProjection(config.text_dim, width), "condition_embedder.text_embedder.", spec),
        *map(text_keys, range(config.num_layers)),
        positions_stage(Positions(config), named("latents"), named("rotary_frames", "rotary_tokens")),
        embed_stage(
            lambda probed: embed(config, probed, conditioned),
            entering,
            spec,
            sites,
            site=BLOCK_INPUT,
            of_timestep={
                TIME: TensorSpec(name="time_embedding", dtype="float32", axes=("batch", width)),
                TIME_MODULATION: TensorSpec(name="time_modulation", dtype="float32", axes=("batch", 6 * width)),
            },
        ),
        *(stage for index in range(config.num_layers) for stage in block(index)),
        final_stage(Final(config), "", named("hidden", "time", "latents"), spec),
    ]


def conditioned_stages(
    config: WanConfig,
    sites: tuple[str, ...] = (),
    precision: DType = "float32",
    granularity: ExportGranularity = "block",
) -> list[Stage]:
    """Return the stages of a model that may keep frames, see :func:`stages`."""
    return stages(config, sites, precision, granularity, conditioned=True)


def describe(
    config: WanConfig,
    scheduler: Mapping[str, Any] | None,
    precision: DType = "float32",  # noqa: ARG001 - conditions stay float32
    pipeline: PipelineConfigs | None = None,
) -> Description:
    """Describe a model that makes videos of 4 k + 1 frames, and images.

    A model with channels for an encoded video starts from an image; another one may keep a first frame if it has a
    timestep for each frame.

    Guidance is [negative prompt; prompt], on UMT5 states that are padded with zeros; the probe is the attention of the
    middle block.

    Raises:
        CheckpointError: ``scheduler_config.json`` asks for a sampler or a setting that is not supported, or the folder
            of the pipeline does not say when which of two transformers runs.
    """
    pipeline = pipeline or PipelineConfigs()
    release = published(config, pipeline)
    upper = {"samples": PROMPTS, "text": MAX_LENGTH, **LARGEST}
    lower = {"height": config.patch_size[1], "width": config.patch_size[2]}
    usual = {CLASS: "UniPCMultistepScheduler", "flow_shift": release.shift, **FLOW}
    return Description(
        sampler=sampler_of(scheduler, usual, release.guidance, release.steps),
        video=release.video,
        names=NAMES,
        guidance=GuidanceRule(order=("unconditional", "conditional"), null_captions=None),
        latent=LatentSpace(
            channels=config.out_channels,
            patch=config.patch_size,
            spatial_factor=release.spatial_factor,
            frames=FIRST_ALONE_THEN_FOURS,
            decoder="none",
            continued=1,
            whole_patches=True,
            resize="stretch",
        ),
        text=TextRule(max_length=MAX_LENGTH, width=config.text_dim, cleaning="repaired", masking="zeros"),
        profiles={"default": {axis: (lower.get(axis, 1), size) for axis, size in upper.items()}},
        probe=f"{KIND}.{config.num_layers // 2}.attn",
        block_input=BLOCK_INPUT,
        experts=_experts(release, pipeline),
        conditioned="always" if not config.condition_channels and _keeps_frames(release, pipeline) else "never",
        float32=FLOAT32,
        policies=presets(FOLDER, release.model),
    )


def _keeps_frames(release: Release, pipeline: PipelineConfigs) -> bool:
    """Return whether a model has a timestep for each frame, so that given frames are at timestep 0."""
    if pipeline.index:
        return pipeline.index.get("expand_timesteps") is True
    return release.model == IMAGE_TO_VIDEO


def _experts(release: Release, pipeline: PipelineConfigs) -> tuple[Expert, ...]:
    """Return the model's transformers: one, or one for high noise and one for low noise.

    Raises:
        CheckpointError: there are two, and no timestep that divides their ranges.
    """
    if not pipeline.two_experts:
        return (Expert(),)
    ratio = release.boundary_ratio if pipeline.unnamed_experts else pipeline.index.get("boundary_ratio")
    if not isinstance(ratio, float) or not 0 < ratio < 1:
        raise CheckpointError(
            f"model_index.json has two transformers and boundary_ratio {ratio!r}; expected a number between 0 and 1,"
            " the share of the timesteps below which the second runs: pass the published file of the model"
        )
    boundary = ratio * TRAIN_TIMESTEPS
    return (
        Expert(name="high", timesteps=(boundary, TRAIN_TIMESTEPS), guidance=release.guidance),
        Expert(name="low", timesteps=(0, boundary), guidance=release.guidance_of_low_noise),
    )
