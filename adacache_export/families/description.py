"""A family's description of a model: the part of the manifest that is known before anything is exported."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from adacache_engines.bundle.manifest import (
    Expert,
    GuidanceRule,
    ImageRule,
    LatentSpace,
    Preset,
    SamplerDefaults,
    TextRule,
    VideoDefaults,
    VideoNames,
)
from adacache_export.checkpoint.pipeline_folder import PipelineConfigs as PipelineConfigs

MODULATED = "spatial.0.modulated"  # site of the first block's input, unless a family has another first block
PIXEL_CHANNELS = 3  # a model of three channels works on pixels, not on latents
VAE_SPATIAL_FACTOR = 8
PRESETS = "policies.json"  # the file with presets in a family's folder
PROMPTS = 4  # largest number of prompts that a bundle takes at once


@dataclass(frozen=True)
class Description:
    """Everything that a manifest says about a model except its tensors and stages.

    Attributes:
        sampler: the sampler with its published settings, or those of ``scheduler_config.json``.
        video: the video that a request makes unless it says otherwise.
        guidance: rule by which a call evaluates conditionings.
        latent: relation between pixels and latents; the graphs between them come with a VAE.
        text: rule by which a prompt becomes captions.
        image: rule by which an image becomes states that the model attends to; None = it attends to none.
        profiles: name -> axis -> smallest and largest size; a request must be within one of them.
        probe: site that is probed where the user asks for none.
        block_input: site of the modulated input of the first block.
        experts: the model's transformers, each with its range of timesteps.
        conditioned: whether the bundle can keep frames that are given: ``always``, ``never`` because the model was not
            trained for it, or where the user asks for it and the family's models can.
        float32: parts of the names of weights that stay float32 whatever the precision.
        names: sizes and durations that have a name; those that no profile covers are left out of the manifest.
        policies: presets for this model, by name.
    """

    sampler: SamplerDefaults
    video: VideoDefaults
    guidance: GuidanceRule
    latent: LatentSpace
    text: TextRule
    profiles: Mapping[str, Mapping[str, tuple[int, int]]]
    probe: str
    block_input: str = MODULATED
    experts: tuple[Expert, ...] = (Expert(),)
    conditioned: Literal["always", "never", "asked"] = "asked"
    float32: tuple[str, ...] = ()
    names: VideoNames = field(default_factory=VideoNames)
    policies: Mapping[str, Preset] = field(default_factory=dict)
    image: ImageRule | None = None


def presets(family: Path, model: str | None = None) -> dict[str, Preset]:
    """Read the policies in a family's folder: published settings, and those that ``tools/demo/fit.py`` fitted.

    Args:
        family: folder of the family.
        model: name of a published model whose own settings are added; None, or a name without any, adds none.
    """
    content = json.loads((family / PRESETS).read_text(encoding="utf-8"))
    own = content.get("models", {}).get(model, {})
    return {name: Preset.model_validate(preset) for name, preset in {**content["presets"], **own}.items()}
