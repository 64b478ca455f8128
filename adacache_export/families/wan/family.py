"""Wan 2.1 and 2.2: text to video and image to video, by one transformer, or by two experts for high and low noise.

Source: Wan-Video/Wan2.1 and Wan-Video/Wan2.2, ``wan/configs``, and the pipelines of diffusers, ``WanPipeline`` and
``WanImageToVideoPipeline``.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adacache_engines.bundle.manifest import (
    IMAGE,
    IMAGE_STATES,
    VIDEO_CONDITION,
    X_MASK,
    Expert,
    ExportGranularity,
    GuidanceRule,
    ImageRule,
    LatentSpace,
    TextRule,
)
from adacache_engines.bundle.tensors import DType, TensorSpec
from adacache_engines.errors import CheckpointError
from adacache_export.families.description import PROMPTS, Description, PipelineConfigs, presets
from adacache_export.families.diffusers_layers import TextProjection
from adacache_export.families.residual_block import Parts
from adacache_export.families.schedulers import CLASS, sampler_of
from adacache_export.families.wan.conditions import (
    IMAGE_KEYS,
    TEXT_KEYS,
    ImageKeys,
    ImageProjection,
    Positions,
    TextKeys,
)
from adacache_export.families.wan.config import Shape, WanConfig
from adacache_export.families.wan.config import config_from as config_from
from adacache_export.families.wan.published import FLOW, IMAGE_TO_VIDEO, NAMES, Release, published
from adacache_export.families.wan.transformer import Block, Embed, EmbedWithVideo, Final
from adacache_export.frame_rules import FIRST_ALONE_THEN_FOURS
from adacache_export.stages import (
    Stage,
    block_stages,
    embed_stage,
    final_stage,
    image_stage,
    positions_stage,
    preparing_stage,
    tensor_specs,
    text_stage,
    weight_shapes,
)
from adacache_runtime.caching.policy import TIME, TIME_MODULATION

NAME = "wan"
MOST_BLOCKS = 100
FOLDER = Path(__file__).parent
SIGNATURE_KEYS: tuple[str, ...] = (
    "patch_embedding.weight",
    "condition_embedder.time_proj.weight",
    "condition_embedder.text_embedder.linear_1.weight",
    "blocks.0.attn1.norm_q.weight",
    "blocks.0.ffn.net.0.proj.weight",
)
# published with models of images in diffusers' layout, and read by nothing
OPTIONAL_KEYS: tuple[str, ...] = tuple(f"blocks.{index}.attn2.norm_added_q.weight" for index in range(MOST_BLOCKS))
# in names of weights that the original keeps so
FLOAT32 = (".time_embedder.", "scale_shift_table", ".norm1.", ".norm2.")
KIND = "joint"  # of all blocks: attention is among all tokens of all frames
PARTS: Mapping[str, Parts] = {KIND: Block.PARTS}
BLOCK_INPUT = f"{KIND}.0.modulated"
MAX_LENGTH = 512  # text tokens
IMAGE_TOKENS = 257  # of CLIP ViT-H/14; an encoder that is exported with the model says its own
LARGEST = {"frames": 128, "height": 240, "width": 240}  # latent: 509 frames, 1920 pixels where 8 are a row
TRAIN_TIMESTEPS = 1000  # timestep of pure noise


def told_by(config: Mapping[str, Any] | None) -> bool:  # noqa: ARG001 - no other family has these tensors
    return True


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

    Where the configuration has channels for it, ``embed`` takes an encoded video beside the latents; and where it has a
    width for them, blocks attend to states of an image.

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
        (IMAGE_STATES, "float32", (1, IMAGE, config.image_dim or 0)),
        *((name, precision, (1, IMAGE, width)) for name in (IMAGE, *IMAGE_KEYS)),
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
        return preparing_stage("text", KIND, index, TextKeys(config), prefix, named(*TEXT_KEYS), spec)

    def of_image() -> Iterator[Stage]:
        if config.image_dim is None:
            return
        yield image_stage(ImageProjection(config), "condition_embedder.image_embedder.", spec)
        for index in range(config.num_layers):
            prefix = f"blocks.{index}.attn2."
            yield preparing_stage("image", KIND, index, ImageKeys(config), prefix, named(*IMAGE_KEYS), spec)

    embed: type[Embed] = EmbedWithVideo if config.condition_channels else Embed
    conditions = [VIDEO_CONDITION] if config.condition_channels else [X_MASK] if conditioned else []
    entering = named("latents", "timestep", *conditions)
    return [
        text_stage(TextProjection(config.text_dim, width), "condition_embedder.text_embedder.", spec),
        *map(text_keys, range(config.num_layers)),
        *of_image(),
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

    A model with channels for an encoded video starts from an image, and may also attend to states of it; another one
    may keep a first frame if it has a timestep for each frame.

    Guidance is [negative prompt; prompt], on UMT5 states that are padded with zeros; the probe is the attention of the
    middle block.

    Raises:
        CheckpointError: ``scheduler_config.json`` asks for a sampler or a setting that is not supported, or the folder
            of the pipeline does not say when which of two transformers runs.
    """
    pipeline = pipeline or PipelineConfigs()
    release = published(config, pipeline, (scheduler or {}).get("flow_shift"))
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
        image=ImageRule(tokens=IMAGE_TOKENS, width=config.image_dim) if config.image_dim else None,
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
