"""What a family says of a model beside its tensors and stages: the part of the manifest that is known beforehand."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adacache_engines.bundle.manifest import GuidanceRule, LatentSpace, Preset, SamplerDefaults, TextRule, VideoDefaults

PIXEL_CHANNELS = 3  # a model of three channels is one of pixels
VAE_SPATIAL_FACTOR = 8
PROMPTS = 4  # that a bundle takes at once


@dataclass(frozen=True)
class Description:
    """
    Attributes:
        sampler: and its published settings, or those of ``scheduler_config.json``.
        video: what a generation makes unless it is told otherwise.
        guidance: how its two branches are made.
        latent: what the latents are, and how they become pixels.
        text: what text the model takes.
        profiles: name -> axis -> smallest and largest size; a generation must fit one of them.
        probe: the site that is probed where the user asks for none.
        policies: presets of this model by name.
    """

    sampler: SamplerDefaults
    video: VideoDefaults
    guidance: GuidanceRule
    latent: LatentSpace
    text: TextRule
    profiles: Mapping[str, Mapping[str, tuple[int, int]]]
    probe: str
    policies: Mapping[str, Preset] = field(default_factory=dict)


def presets(family: Path) -> dict[str, Preset]:
    """The policies in a family's folder: published settings, and AdaCache's where ``tools/demo/fit.py`` fitted them."""
    content = json.loads((family / "policies.json").read_text(encoding="utf-8"))
    return {name: Preset.model_validate(preset) for name, preset in content["presets"].items()}
