"""Recorded tensors of the original Open-Sora, and this project's stages run on them in torch and by engines."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from adacache_export.families.open_sora.transformer import OpenSoraConfig
from adacache_export.families.registry import FAMILIES
from adacache_export.stages import Stage, run_stages
from adacache_runtime.pipeline import Pipeline
from tests.helpers.originals.reference import OPEN_SORA, arrays, config, run_graph

KINDS = ("spatial", "temporal")


FAMILY = FAMILIES["open-sora-1.2"]


CONFIG = config(OpenSoraConfig)


SITES = tuple(f"{kind}.{i}.{site}" for kind in KINDS for i in range(CONFIG.depth) for site in ("attn", "cross+mlp"))


INPUTS = arrays(OPEN_SORA / "inputs_A.npz")


VARIANTS = arrays(OPEN_SORA / "outputs_A_variants.npz")


NULL = load_file(OPEN_SORA / "weights_A.safetensors")["y_embedder.y_embedding"].numpy()


Inputs = dict[str, np.ndarray]


def model_inputs() -> Inputs:
    return {
        "latents": INPUTS["x"],
        "timestep": INPUTS["timestep"],
        "captions": INPUTS["y"][:, 0],
        "text_mask": INPUTS["mask"].astype(bool),
        "fps": INPUTS["fps"],
        "height": INPUTS["height"][:1],
        "width": INPUTS["width"][:1],
    }


def variant(name: str) -> Inputs:
    """Return the inputs of one recorded run of the original; ``""`` is the plain one."""
    inputs = model_inputs()
    if name == "nomask":
        inputs["text_mask"] = np.ones_like(inputs["text_mask"])
    elif name == "image":
        inputs |= {"latents": inputs["latents"][:, :, :1], "fps": np.full(2, 120, np.float32)}
    elif name == "cfg":
        twice = {name: np.concatenate([inputs[name]] * 2) for name in ("latents", "timestep", "text_mask", "fps")}
        null = np.broadcast_to(NULL, inputs["captions"].shape)
        inputs |= {**twice, "captions": np.concatenate([inputs["captions"], null])}
    return inputs


def run_torch(stages: list[Stage], inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    with torch.no_grad():
        return run_stages(stages, {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in inputs.items()})


def run_engines(pipeline: Pipeline, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Run the bundle's graphs one after another; yields each stage's name and outputs."""
    manifest = pipeline.bundle.manifest
    batch, _, *size = inputs["latents"].shape
    axes = dict(zip(("frames", "height", "width"), size, strict=True))
    sizes = {"batch": batch, "text": inputs["captions"].shape[1], **axes, **manifest.latent.token_axes(**axes)}
    named = dict(inputs)
    for stage in manifest.stages:
        outputs = run_graph(pipeline.backend, stage.graph, named, sizes)
        named |= {name.removesuffix("_out"): value for name, value in outputs.items()}
        yield stage.graph.name, outputs
