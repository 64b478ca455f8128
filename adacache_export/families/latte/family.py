"""Latte-1: 16 frames of 512x512 pixels, sampled with DDIM.

Source: Vchitect/Latte, ``sample/sample_t2v.py`` and ``sample/pipeline_latte.py``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adacache_engines.bundle.manifest import VideoDefaults
from adacache_engines.bundle.tensors import DType
from adacache_export.families.description import VAE_SPATIAL_FACTOR, Description, PipelineConfigs
from adacache_export.families.latte_t2v import family as latte_t2v
from adacache_export.families.latte_t2v.transformer import LatteT2VConfig
from adacache_export.families.open_sora_plan import family as open_sora_plan
from adacache_export.families.schedulers import sampler_of
from adacache_export.frame_rules import EACH_FRAME

NAME = "latte-1"
FOLDER = Path(__file__).parent
SIGNATURE_KEYS = latte_t2v.SIGNATURE_KEYS
OPTIONAL_KEYS = latte_t2v.OPTIONAL_KEYS
PARTS = latte_t2v.PARTS

expected = latte_t2v.expected
constants = latte_t2v.constants
stages = latte_t2v.stages
conditioned_stages = None


def told_by(config: Mapping[str, Any] | None) -> bool:
    return config is not None and not open_sora_plan.told_by(config)


def config_from(given: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]) -> LatteT2VConfig:
    """Return the configuration, from ``config.json`` where there is one and from the shapes of the tensors.

    Raises:
        CheckpointError: see :func:`adacache_export.families.latte_t2v.family.config_from`.
    """
    return latte_t2v.config_from(given, shapes, LatteT2VConfig(), lambda _frames: 1.0)


def describe(
    config: LatteT2VConfig,
    scheduler: Mapping[str, Any] | None,
    precision: DType = "float32",  # noqa: ARG001 - conditions stay float32
    pipeline: PipelineConfigs | None = None,
) -> Description:
    """Describe a model that makes images, and clips of the one length that it was trained on.

    Raises:
        CheckpointError: ``scheduler_config.json`` asks for a sampler or a setting that is not supported.
    """
    latent = latte_t2v.latent_space(config, EACH_FRAME, _spatial_factor(pipeline))
    height, width = (latent.spatial_factor * side for side in config.sample_size)
    video = VideoDefaults(height=height, width=width, frames=config.video_length, fps=8, image_fps=8)
    sampler = sampler_of(scheduler, {"_class_name": "DDIMScheduler"}, latte_t2v.GUIDANCE)
    return latte_t2v.describe(FOLDER, config, video, latent, sampler, image=True)


def _spatial_factor(pipeline: PipelineConfigs | None) -> int:
    """Return the number of pixels of a latent row: every block of the VAE but the last halves them."""
    blocks = pipeline.vae.get("block_out_channels") if pipeline else None
    return 1 << (len(blocks) - 1) if isinstance(blocks, list) and blocks else VAE_SPATIAL_FACTOR
