"""Made-up 1: LatteT2V on pixels with one guidance branch, no cleaning of prompts, and a sampler, sizes and durations of
its own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adacache_engines.bundle.manifest import (
    GuidanceRule,
    LatentSpace,
    SamplerDefaults,
    TextRule,
    VideoDefaults,
    VideoNames,
)
from adacache_engines.bundle.tensors import DType
from adacache_export.families.description import Description, PipelineConfigs, presets
from adacache_export.families.latte_t2v import family as latte_t2v
from adacache_export.families.latte_t2v.transformer import LatteT2VConfig

NAME = "made-up-1"
FOLDER = Path(__file__).parent
SIGNATURE_KEYS = latte_t2v.SIGNATURE_KEYS
OPTIONAL_KEYS = latte_t2v.OPTIONAL_KEYS
PARTS = latte_t2v.PARTS

expected = latte_t2v.expected
constants = latte_t2v.constants
stages = latte_t2v.stages
conditioned_stages = None


def told_by(config: Mapping[str, Any] | None) -> bool:
    return config is not None and config.get("made_up") is True


def config_from(given: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]) -> LatteT2VConfig:
    return latte_t2v.config_from(given, shapes, LatteT2VConfig(), lambda _frames: 1.0)


def describe(
    config: LatteT2VConfig,
    _scheduler: Mapping[str, Any] | None,
    _precision: DType = "float32",
    _pipeline: PipelineConfigs | None = None,
) -> Description:
    height, width = config.sample_size
    return Description(
        sampler=SamplerDefaults(name="rflow", steps=6, guidance=2.0),
        video=VideoDefaults(height=height, width=width, frames=config.video_length, fps=2),
        guidance=GuidanceRule(order=("unconditional", "conditional")),
        latent=LatentSpace(
            channels=config.in_channels,
            patch=(1, config.patch_size, config.patch_size),
            spatial_factor=1,
            decoder="pixels",
            whole_patches=True,
        ),
        text=TextRule(max_length=config.model_max_length, width=config.caption_channels),
        profiles={"any": {"height": (2, 32), "width": (2, 32), "frames": (config.video_length, config.video_length)}},
        probe="temporal.0.attn",
        names=VideoNames(
            sizes={"tiny": {"16:8": (16, 8), "1:1": (8, 8)}, "huge": {"1:1": (64, 64)}, "odd": {"1:1": (7, 7)}},
            aspect="1:1",
        ),
        policies=presets(FOLDER),
    )
