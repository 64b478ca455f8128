"""Whole folders of Wan pipelines: what ``adacache-run`` makes from their bundles is what diffusers makes of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.files import read_manifest
from adacache_export.commands.export import main as export
from adacache_runtime.commands.run import main as run
from tests.helpers import wan
from tests.helpers.exporting import unlogged

TOLERANCE = 1e-4  # relative
STEPS, GUIDANCE = 8, 5.0
Once = Callable[[str, Callable[[Path], object]], Path]


def euler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)


# name -> changes of the transformer, of the pipeline, frames, height, width, guidance of the second expert
CASES: Mapping[str, tuple[dict[str, Any], dict[str, Any], int, int, int, float | None]] = {
    "unipc": ({}, {}, 5, 48, 80, None),
    "image": ({"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 1}, {}, 1, 32, 16, None),
    "euler": ({"cross_attn_norm": False, "eps": 1e-5}, {"scheduler": euler}, 17, 16, 48, None),
    "experts": ({"num_layers": 1}, {"boundary": 0.875}, 9, 32, 32, 3.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_latents_are_those_of_diffusers(name: str, tmp_path: Path) -> None:
    changes, options, frames, height, width, guidance_2 = CASES[name]
    made = {key: value() if callable(value) else value for key, value in options.items()}
    count = 2 if "boundary" in options else 1
    pipeline = wan.pipeline([wan.transformer(seed, **changes) for seed in range(count)], **made)
    folder, bundle = tmp_path / "Wan2.1-Tiny", tmp_path / "bundle"
    pipeline.save_pretrained(folder)
    with unlogged():
        assert export([str(folder), "-o", str(bundle), "--backend", "onnxruntime"]) == 0
    given = wan.inputs(read_manifest(bundle), tmp_path, frames, height, width)
    size = {"height": height, "width": width, "num_frames": frames}
    second = {} if guidance_2 is None else {"guidance_scale_2": guidance_2}
    expected = wan.latents_of(pipeline, given, num_inference_steps=STEPS, guidance_scale=GUIDANCE, **size, **second)
    command = [str(bundle), "--latents", "z.npz", "--text-embeddings", "e.npz", "--steps", str(STEPS)]
    command += ["--guidance", str(GUIDANCE), "--height", str(height), "--width", str(width), "--frames", str(frames)]
    command += [] if guidance_2 is None else ["--guidance-2", str(guidance_2)]
    at = {"z.npz", "e.npz"}
    command = [str(tmp_path / part) if part in at else part for part in command]
    assert run([*command, "--save-latents", str(tmp_path / "out.npz"), "-o", str(tmp_path / "frames.npz")]) == 0
    latents = np.load(tmp_path / "out.npz")["latents"]
    assert np.isfinite(expected).all()
    assert np.abs(latents - expected).max() <= TOLERANCE * np.abs(expected).max()
