"""Open-Sora 1.2: its tensors, its configuration, its stages, and its sampler.

Source: hpcaitech/Open-Sora v1.2.0, ``configs/opensora-v1-2/inference`` and ``opensora/models/stdit/stdit3.py``.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from adacache_engines.bundle.manifest import (
    X_MASK,
    ExportGranularity,
    GuidanceRule,
    LatentSpace,
    SamplerDefaults,
    TextRule,
    TimestepShift,
    VideoDefaults,
)
from adacache_engines.bundle.tensors import DType, TensorSpec
from adacache_engines.errors import CheckpointError, InputError
from adacache_export.families.config import count_blocks, settle
from adacache_export.families.description import (
    PIXEL_CHANNELS,
    PROMPTS,
    VAE_SPATIAL_FACTOR,
    Description,
    PipelineConfigs,
    presets,
)
from adacache_export.families.open_sora.sizes import NAMES
from adacache_export.families.open_sora.transformer import (
    Block,
    CaptionEmbedder,
    Embed,
    Final,
    OpenSoraConfig,
    Positions,
)
from adacache_export.families.residual_block import Parts
from adacache_export.families.schedulers import refuse, unsupported
from adacache_export.frame_rules import CHUNKS_OF_17, EACH_FRAME
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

NAME = "open-sora-1.2"
FOLDER = Path(__file__).parent
SIGNATURE_KEYS: tuple[str, ...] = (
    "fps_embedder.mlp.0.weight",
    "t_block.1.weight",
    "y_embedder.y_proj.fc1.weight",
    "spatial_blocks.0.scale_shift_table",
    "temporal_blocks.0.scale_shift_table",
)
ROPE = "rope.freqs"  # a constant that the published files contain
OPTIONAL_KEYS: tuple[str, ...] = (ROPE,)

PARTS: Mapping[str, Parts] = {"spatial": Block.PARTS, "temporal": Block.PARTS}
BLOCK_LISTS = tuple(f"{kind}_blocks" for kind in PARTS)
REQUIRED = {
    "qk_norm": (True, "attention without normalised queries and keys is not supported"),
    "qk_norm_legacy": (False, "queries and keys rotated before they are normalised are not supported"),
    "skip_y_embedder": (False, "text that arrives already projected is not supported: the text stage projects it"),
}
# settings of RFLOW (schedulers/rf) by the one value that is supported, and those that count in training only
SUPPORTED_SETTINGS: Mapping[str, Any] = {"type": "rflow", "num_timesteps": 1000, "use_discrete_timesteps": False}
TRAINING_SETTINGS = ("sample_method", "loc", "scale", "transform_scale")
# schedulers/rf/rectified_flow.py, after Stable Diffusion 3 (arXiv 2403.03206, eq. 23)
SHIFT = TimestepShift(reference_pixels=512**2, chunk_frames=17, chunk_latents=5)
LARGEST = {"frames": 120, "height": 240, "width": 240}  # latent: 408 frames, 1920 pixels
NULL_CAPTIONS = "y_embedder.y_embedding"
TIME_OF_KEPT = "time_of_kept"  # the embedding of timestep 0


def config_from(given: Mapping[str, Any] | None, shapes: Mapping[str, Shape]) -> OpenSoraConfig:
    """Return the configuration, from ``config.json`` where there is one and from the shapes of the tensors.

    Raises:
        CheckpointError: the two contradict each other, a value makes no sense, or the variant is not supported.
    """
    config = OpenSoraConfig(**settle(asdict(OpenSoraConfig()), given, _infer(given, shapes), REQUIRED))
    if config.hidden_size % (2 * config.num_heads) or config.hidden_size % 4:
        raise CheckpointError(
            f"hidden_size {config.hidden_size} with num_heads {config.num_heads} is not possible; expected a multiple"
            " of 4 and of twice the heads: check that the checkpoint is Open-Sora's, and download it again"
        )
    return config


def _infer(given: Mapping[str, Any] | None, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the fields that the shapes determine.

    A field that a missing or odd tensor leaves open keeps its given or default value: the comparison of all tensors
    then names that tensor.
    """

    def axes(key: str, count: int) -> Shape:
        shape = shapes.get(key, ())
        return shape if len(shape) == count and all(shape) else (0,) * count

    def either(name: str, count: int) -> Shape:
        return max(axes(f"{blocks}.0.{name}", count) for blocks in BLOCK_LISTS)

    inferred: dict[str, Any] = {"depth": count_blocks(shapes, BLOCK_LISTS)}
    _, width = either("scale_shift_table", 2)
    if not width:
        return inferred
    patched, channels, *patch = axes("x_embedder.proj.weight", 5)
    rows, _ = axes("final_layer.linear.weight", 2)
    (head_width,) = either("attn.q_norm.weight", 1)
    mlp_rows, _ = either("mlp.fc1.weight", 2)
    inferred |= {
        "hidden_size": width,
        "caption_channels": axes("y_embedder.y_proj.fc1.weight", 2)[1],
        "model_max_length": axes("y_embedder.y_embedding", 2)[0],
        "num_heads": width // head_width if head_width and width % head_width == 0 else 0,
        "mlp_ratio": _ratio(mlp_rows, width, given),
    }
    if patched:
        inferred |= {"in_channels": channels, "patch_size": tuple(patch)}
        outputs = rows / (math.prod(patch) * channels)
        if outputs in (1, 2):
            inferred["pred_sigma"] = outputs == 2
    return {field: value for field, value in inferred.items() if value or value is False}


def _ratio(rows: int, width: int, given: Mapping[str, Any] | None) -> float:
    """Return a ratio with ``int(width * ratio) == rows``: the one in ``given`` where that holds for it."""
    ratio = (given or {}).get("mlp_ratio")
    if isinstance(ratio, int | float) and 0 < ratio < 1e9 and int(width * ratio) == rows:
        return float(ratio)
    exact = rows / width
    return exact if int(width * exact) == rows else math.nextafter(exact, math.inf)


def expected(config: OpenSoraConfig) -> dict[str, Shape]:
    """Return the shape of every tensor of a checkpoint by its name, including the optional tensor."""
    with torch.device("meta"):
        weights = weight_shapes(stages(config))
    null_captions = (config.model_max_length, config.caption_channels)
    return {ROPE: (config.head_width // 2,), NULL_CAPTIONS: null_captions, **weights}


def constants(config: OpenSoraConfig) -> dict[str, Tensor]:
    """Return the frequencies of temporal rotation, which a checkpoint may have although the stages compute them."""
    pairs = torch.arange(config.head_width // 2, dtype=torch.float64)
    return {ROPE: 10000.0 ** (-2 * pairs / config.head_width)}


def stages(
    config: OpenSoraConfig,
    sites: tuple[str, ...] = (),
    precision: DType = "float32",
    granularity: ExportGranularity = "block",
    conditioned: bool = False,
) -> list[Stage]:
    """Return the model's stages in the order in which a call runs them, with zero weights.

    Args:
        config: configuration of the model.
        sites: sites to probe, such as ``temporal.13.attn``.
        precision: dtype of the activations.
        granularity: whether a stage is a whole block or one of its residual parts.
        conditioned: whether frames may be given and kept: ``embed`` and ``final`` then take ``x_mask`` (B, T'), and
            each frame has a modulation of its own.

    Raises:
        InputError: ``conditioned`` is set, and a token spans several frames.
    """
    spec = tensor_specs(config.in_channels, config.out_channels, config.hidden_size, config.caption_channels, precision)
    own: dict[str, tuple[int | str, ...]] = {
        "fps": ("batch",),
        "height": (1,),
        "width": (1,),
        "position_tokens": ("tokens", config.hidden_size),
        "rotary_frames": ("patch_frames", 2, config.head_width // 2),
    }
    spec |= {name: TensorSpec(name=name, dtype="float32", axes=axes) for name, axes in own.items()}
    sizes, tables = ["latents", "height", "width"], ["position_tokens", "rotary_frames"]
    conditions = ["latents", "timestep", "fps", "position_tokens"]
    embedded, final = ["hidden", "modulation", "time"], ["hidden", "time", "latents"]
    if conditioned:
        spec |= _of_frames(config, spec)
        conditions += [X_MASK]
        embedded += [TIME_OF_KEPT]
        final += [TIME_OF_KEPT, X_MASK]

    def named(names: list[str]) -> tuple[TensorSpec, ...]:
        return tuple(spec[name] for name in names)

    def block(kind: str, index: int) -> list[Stage]:
        def make(parts: Parts, here: tuple[str, ...]) -> Block:
            return Block(config, kind, parts, here)

        prefix = f"{kind}_blocks.{index}."
        return block_stages(kind, index, PARTS[kind], make, prefix, spec, sites, granularity)

    def embed(probed: bool) -> Embed:
        return Embed(config, probed, conditioned)

    return [
        text_stage(CaptionEmbedder(config), "y_embedder.", spec),
        positions_stage(Positions(config), named(sizes), named(tables)),
        embed_stage(embed, named(conditions), spec, sites, embedded),
        *(stage for index in range(config.depth) for kind in PARTS for stage in block(kind, index)),
        final_stage(Final(config), "final_layer.", named(final), spec),
    ]


def _of_frames(config: OpenSoraConfig, spec: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Return the tensors of a model that may keep frames, as far as they differ from ``spec``."""
    if config.patch_size[0] != 1:
        raise InputError(
            f"a token of this model spans {config.patch_size[0]} latent frames, so that single frames cannot be kept; "
            "leave --conditioning out"
        )
    frames = ("batch", "patch_frames")
    return {
        X_MASK: TensorSpec(name=X_MASK, dtype="bool", axes=frames),
        TIME_OF_KEPT: spec["time"].model_copy(update={"name": TIME_OF_KEPT}),
        "modulation": spec["modulation"].model_copy(update={"axes": (*frames, 6, config.hidden_size)}),
    }


def conditioned_stages(
    config: OpenSoraConfig,
    sites: tuple[str, ...] = (),
    precision: DType = "float32",
    granularity: ExportGranularity = "block",
) -> list[Stage]:
    """Return the stages of a model that may keep frames, see :func:`stages`."""
    return stages(config, sites, precision, granularity, conditioned=True)


def told_by(config: Mapping[str, Any] | None) -> bool:  # noqa: ARG001 - no other family has these tensors
    return True


def describe(
    config: OpenSoraConfig,
    scheduler: Mapping[str, Any] | None,
    precision: DType = "float32",
    pipeline: PipelineConfigs | None = None,  # noqa: ARG001 - it is published without one
) -> Description:
    """Describe a model whose default video is 480p landscape of 2 s.

    A model that works on pixels makes a short clip of the size that its positions refer to. Guidance is [prompt; null
    caption], where the null caption is a tensor of the checkpoint; captions are T5 states; the probe is the temporal
    attention of the middle block, 13 of 28.

    Raises:
        CheckpointError: ``scheduler_config.json`` asks for a sampler or a setting that is not supported.
    """
    pixels = config.in_channels == PIXEL_CHANNELS
    side = config.input_sq_size
    largest = {"frames": 128, "height": 512, "width": 512} if pixels else LARGEST
    upper = {"samples": PROMPTS, "text": config.model_max_length, **largest}
    return Description(
        sampler=_sampler(scheduler, precision),
        video=VideoDefaults(height=side, width=side, frames=8)
        if pixels
        else VideoDefaults(height=480, width=854, frames=51),
        names=NAMES.model_copy(update={"durations": {}, "only_named_durations": False}) if pixels else NAMES,
        guidance=GuidanceRule(order=("conditional", "unconditional"), null_captions=NULL_CAPTIONS),
        latent=LatentSpace(
            channels=config.in_channels,
            patch=config.patch_size,
            spatial_factor=1 if pixels else VAE_SPATIAL_FACTOR,
            frames=EACH_FRAME if pixels else CHUNKS_OF_17,
            decoder="pixels" if pixels else "none",
        ),
        text=TextRule(
            max_length=config.model_max_length,
            width=config.caption_channels,
            cleaning="html-and-captions-trimmed",
            scores=("aesthetic", "motion", "camera"),
        ),
        profiles={"default": {axis: (1, size) for axis, size in upper.items()}},
        probe=f"temporal.{(config.depth - 1) // 2}.attn",
        policies=presets(FOLDER),
    )


def _sampler(scheduler: Mapping[str, Any] | None, precision: DType) -> SamplerDefaults:
    """Return the published inference settings, changed by a ``scheduler_config.json`` with Open-Sora's own keys.

    Settings of other schedulers, such as those of diffusers, are refused by name.

    The original holds sizes and timesteps in the dtype of its weights. float16 cannot hold height x width, so that they
    stay float32 here where the weights are float16.
    """
    given = dict(scheduler or {})
    shifts = given.pop("use_timestep_transform", True)
    problems = unsupported(given, SUPPORTED_SETTINGS, ("num_sampling_steps", "cfg_scale", *TRAINING_SETTINGS))
    if not isinstance(shifts, bool):
        problems.append(f"use_timestep_transform {shifts!r} (expected true or false)")
    refuse(problems)
    try:
        return SamplerDefaults(
            name="rflow",
            steps=given.get("num_sampling_steps", 30),
            guidance=given.get("cfg_scale", 7.0),
            timestep_shift=SHIFT if shifts else None,
            condition_dtype="bfloat16" if precision == "bfloat16" else "float32",
        )
    except ValidationError as error:
        raise CheckpointError(f"scheduler_config.json: {error}") from error
