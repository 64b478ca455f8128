"""Open-Sora-Plan 1.1: 65 or 221 frames of 512x512 pixels, sampled with PNDM.

Source: PKU-YuanGroup/Open-Sora-Plan v1.1.0, ``opensora/sample`` and ``opensora/models/diffusion/latte``.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adacache_engines.bundle.manifest import VideoDefaults
from adacache_engines.bundle.tensors import DType
from adacache_export.families.description import Description, PipelineConfigs
from adacache_export.families.latte_t2v import family as latte_t2v
from adacache_export.families.latte_t2v.transformer import LatteT2VConfig
from adacache_export.families.schedulers import sampler_of
from adacache_export.frame_rules import FIRST_THEN_FOURS

NAME = "open-sora-plan-1.1"
FOLDER = Path(__file__).parent
SIGNATURE_KEYS = latte_t2v.SIGNATURE_KEYS
OPTIONAL_KEYS = latte_t2v.OPTIONAL_KEYS
PARTS = latte_t2v.PARTS

RELEASED = replace(LatteT2VConfig(), video_length=17, model_max_length=300)
TRAINED_FRAMES = 16  # latent frames, besides the first one, to a unit of the temporal positions' scale
OWN_FIELDS = (  # fields of config.json that Latte's does not have
    "attention_mode",
    "compress_kv_factor",
    "interpolation_scale_1d",
    "model_max_length",
    "patch_size_t",
    "rope_scaling_type",
    "use_rope",
)

expected = latte_t2v.expected
constants = latte_t2v.constants
stages = latte_t2v.stages
conditioned_stages = None


def told_by(config: Mapping[str, Any] | None) -> bool:
    return config is not None and any(field in config for field in OWN_FIELDS)


def config_from(given: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]) -> LatteT2VConfig:
    """Return the configuration, from ``config.json`` where there is one and from the shapes of the tensors.

    Raises:
        CheckpointError: see :func:`adacache_export.families.latte_t2v.family.config_from`.
    """
    return latte_t2v.config_from(given, shapes, RELEASED, temporal_scale)


def temporal_scale(frames: int) -> float:
    """Return the scale by which temporal positions are divided, for clips of ``frames`` latent frames.

    It is 1 at the length that the model was first trained on, and grows with longer clips.
    """
    return float(max((frames - frames % 2) // TRAINED_FRAMES, 1))


def describe(
    config: LatteT2VConfig,
    scheduler: Mapping[str, Any] | None,
    precision: DType = "float32",  # noqa: ARG001 - conditions stay float32
    pipeline: PipelineConfigs | None = None,  # noqa: ARG001 - all is in the transformer's own configuration
) -> Description:
    """Describe a model that makes clips only: for an image, the original leaves out all temporal blocks.

    Raises:
        CheckpointError: ``scheduler_config.json`` asks for a sampler or a setting that is not supported.
    """
    latent = latte_t2v.latent_space(config, FIRST_THEN_FOURS)
    height, width = (latent.spatial_factor * side for side in config.sample_size)
    frames = latent.frames.frames_of(config.video_length)
    video = VideoDefaults(height=height, width=width, frames=frames)
    sampler = sampler_of(scheduler, {"_class_name": "PNDMScheduler"}, latte_t2v.GUIDANCE)
    return latte_t2v.describe(FOLDER, config, video, latent, sampler, image=False)
