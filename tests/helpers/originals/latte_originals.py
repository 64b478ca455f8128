"""Recorded tensors and sampling runs of the original Latte and Open-Sora-Plan, and this project's stages for them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from adacache_export.families.registry import FAMILIES, Family
from adacache_export.stages import Stage
from adacache_runtime.request import Captions, Request
from tests.helpers.originals.reference import DATA, Arrays, arrays

PATCH = 2


UNMASKED = ("nomask", "nonsquare", "oneframe", "notemporal")  # runs of the original without a text mask


@dataclass(frozen=True)
class Original:
    """The recorded tensors of a family's original implementation, and that family."""

    folder: Path
    family: Family
    sample: str

    @property
    def inputs(self) -> Arrays:
        return arrays(self.folder / "inputs.npz")

    @property
    def outputs(self) -> Arrays:
        return arrays(self.folder / "outputs.npz")

    @property
    def sampled(self) -> Arrays:
        return arrays(self.folder / f"{self.sample}.npz")

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "weights.safetensors")

    def config(self) -> Any:
        given = json.loads((self.folder / "config.json").read_text())
        return self.family.config_from(given, {name: tuple(value.shape) for name, value in self.weights.items()})

    def stages(self, *arguments: Any, **options: Any) -> list[Stage]:
        stages = self.family.stages(self.config(), *arguments, **options)
        for stage in stages:
            stage.module.load_state_dict({name: self.weights[key] for name, key in stage.keys().items()})
        return stages


ORIGINALS = {
    "latte": Original(DATA / "latte", FAMILIES["latte-1"], "sample_ddim50"),
    "open-sora-plan": Original(DATA / "open-sora-plan", FAMILIES["open-sora-plan-1.1"], "sample_pndm20"),
}


def model_inputs(original: Original, variant: str) -> Arrays:
    inputs = original.inputs
    latents = {"nonsquare": "latents_nonsquare", "oneframe": "latents_1frame"}.get(variant, "latents")
    mask = inputs["mask"].astype(bool)
    given = {
        "latents": inputs[latents],
        "timestep": inputs["timestep"].astype(np.float32),
        "captions": inputs["text"],
        "text_mask": np.ones_like(mask) if variant in UNMASKED else mask,
    }
    if variant == "spatialmask":
        pixels = inputs["spatial_mask"]
        tokens = pixels.reshape(*pixels.shape[:2], pixels.shape[2] // PATCH, PATCH, -1, PATCH).max((3, 5))
        given["token_mask"] = tokens.reshape(*tokens.shape[:2], -1) > 0
    return given


def request(original: Original, **options: Any) -> Request:
    """Return the request of the reference sampling run, changed by ``options``."""
    inputs = original.inputs
    captions = Captions(inputs["cfg_text"], np.ones(inputs["cfg_text"].shape[:2], bool), inputs["cfg_neg"])
    steps = int(original.sample[-2:])
    return Request(**{"captions": captions, "latents": inputs["noise"], "steps": steps, "keep_calls": True, **options})
