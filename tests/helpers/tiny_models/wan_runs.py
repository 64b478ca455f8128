"""Bundles of tiny Wan pipelines, and what ``adacache-run`` makes from them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_export.commands.export import main as export
from adacache_runtime.commands.run import main as run
from tests.helpers.tiny_models.exporting import unlogged

TOLERANCE = 1e-4  # relative
STEPS, GUIDANCE = 8, 5.0


def exported(pipeline: Any, folder: Path) -> Path:
    """Save a pipeline, and export its folder."""
    pipeline.save_pretrained(folder / "Wan2.1-Tiny")
    with unlogged():
        assert export([str(folder / "Wan2.1-Tiny"), "-o", str(folder / "bundle"), "--backend", "onnxruntime"]) == 0
    return folder / "bundle"


def run_command(
    bundle: Path, folder: Path, frames: int, height: int, width: int, guidance_2: float | None = None, *others: object
) -> list[str]:
    """Return the arguments of ``adacache-run`` for the files that :func:`wan.inputs` wrote."""
    command: list[object] = [bundle, "--latents", folder / "z.npz", "--text-embeddings", folder / "e.npz"]
    command += ["--steps", STEPS, "--guidance", GUIDANCE, "--height", height, "--width", width, "--frames", frames]
    command += [] if guidance_2 is None else ["--guidance-2", guidance_2]
    command += [*others, "--save-latents", folder / "out.npz", "-o", folder / "frames.npz"]
    return list(map(str, command))


def made_by_run(bundle: Path, folder: Path, *asked: Any) -> NDArray[np.float32]:
    """Return the latents that ``adacache-run`` makes; the arguments are those of :func:`run_command`."""
    assert run(run_command(bundle, folder, *asked)) == 0
    latents: NDArray[np.float32] = np.load(folder / "out.npz")["latents"]
    return latents


def assert_alike(latents: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert np.isfinite(expected).all()
    assert np.abs(latents - expected).max() <= TOLERANCE * np.abs(expected).max()
