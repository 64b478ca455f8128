"""Wan 2.1's models that attend to states of an image: what their bundles make is what diffusers makes."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.files import read_manifest, replace_manifest
from adacache_export.commands.export import main as export
from adacache_export.phases import Progress
from adacache_export.verification.verify import verify
from adacache_runtime.commands.run import main as run
from tests.helpers.tiny_models import wan
from tests.helpers.tiny_models.wan_runs import GUIDANCE, STEPS, assert_alike, exported, made_by_run, run_command

LENGTH = 512  # of the text, which diffusers takes for granted
# name -> changes of the transformer and of the image encoder, frames, height, width
CASES: Mapping[str, tuple[dict[str, Any], dict[str, Any], int, int, int]] = {
    "three layers": ({"num_layers": 2}, {}, 5, 48, 80),
    "one layer": (
        {"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 1},
        {"layers": 1, "width": 6, "side": 16, "patch": 4, "shorter": 16},
        17,
        16,
        48,
    ),
}


def pipeline_of(changes: Mapping[str, Any], encoder: Mapping[str, Any]) -> Any:
    from tests.helpers.tiny_models.wan_vae import CHANNELS, random_wan_vae  # here: it imports torch

    own = {"in_channels": 2 * CHANNELS + 4, "out_channels": CHANNELS, **changes}
    width = own.get("num_attention_heads", 2) * own.get("attention_head_dim", 12)
    states = wan.image_encoder(**encoder)
    image_dim = states["image_encoder"].config.hidden_size
    transformer = wan.transformer(image_dim=image_dim, added_kv_proj_dim=width, **own)
    return wan.pipeline([transformer], vae=random_wan_vae("plain"), image=True, encoder=states)


def take_encoder_out(bundle: Path) -> None:
    """Leave of a bundle what an export without the image encoder leaves."""
    manifest = read_manifest(bundle)
    assert manifest.image is not None
    weights = {name: path for name, path in manifest.part_weights.items() if name != "image_encoder"}
    part = Path(manifest.part_weights["image_encoder"]).parent
    changes = {
        "image": manifest.image.model_copy(update={"encoder_stages": (), "encoder_config": None}),
        "part_weights": weights,
        "files": {path: entry for path, entry in manifest.files.items() if not path.startswith(f"{part}/")},
    }
    shutil.rmtree(bundle / part)
    replace_manifest(bundle, manifest.model_copy(update=changes))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_videos_are_those_of_diffusers(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without its image encoder the bundle asks for one, and with another copy of it the bundle is what it was."""
    from PIL import Image

    changes, encoder, frames, height, width = CASES[name]
    pipeline = pipeline_of(changes, encoder)
    bundle = exported(pipeline, tmp_path)
    manifest = read_manifest(bundle)
    given = wan.inputs(manifest, tmp_path, frames, height, width, LENGTH)
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (height + 8, width + 12, 3), np.uint8))
    image.save(tmp_path / "first.png")
    latents = made_by_run(bundle, tmp_path, frames, height, width, None, "--image", tmp_path / "first.png")
    asked = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "image": image}
    asked |= {"height": height, "width": width, "num_frames": frames}
    expected = wan.latents_of(pipeline, given, **asked)
    assert_alike(latents, expected)
    (pixels,) = wan.latents_of(pipeline, given, "np", **asked)
    made = np.load(tmp_path / "frames.npz")["frames"]
    assert made.shape == pixels.shape
    assert np.abs(made / 255 - pixels).max() <= 2e-3
    verified = [graph.name for graph in verify(bundle, Progress())]
    assert sorted(verified) == sorted({graph.name for graph in manifest.graphs()}), "--verify leaves no graph out"

    take_encoder_out(bundle)
    command = run_command(bundle, tmp_path, frames, height, width, None, "--image", tmp_path / "first.png")
    capsys.readouterr()
    assert run(command) == 1
    error = capsys.readouterr().err
    assert "this bundle has no image encoder, and the model attends to states of the image: add one with" in error
    assert len(error.splitlines()) == 1
    assert export([str(bundle), "--image-encoder", str(tmp_path / "Wan2.1-Tiny" / "image_encoder")]) == 0
    assert read_manifest(bundle) == manifest
