"""A family that the package does not know: one file, and one line in the registry."""

import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from adacache_engines.bundle.manifest import Manifest
from adacache_engines.bundle.video_sizes import durations_of
from adacache_engines.errors import CheckpointError
from adacache_export.families import registry
from adacache_export.families.latte_t2v.transformer import LatteT2VConfig
from adacache_runtime.caching.policy import Policy
from adacache_runtime.pipeline import Pipeline
from adacache_serve.device.messages import Begin, Completed, Failed, from_worker
from adacache_serve.device.worker import Worker
from adacache_serve.http.views import model_of
from adacache_serve.orders.check import FieldError, check
from adacache_serve.orders.schema import CreateVideo
from adacache_serve.settings import Settings
from tests.helpers.made_up_family import family
from tests.helpers.originals.reference import DEMO
from tests.helpers.policies.policy_kinds import KINDS
from tests.helpers.tiny_models.exporting import convert_quietly

JSON: dict[str, Any] = {
    "made_up": True,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 1,
    "sample_size": 8,
    "video_length": 4,
    "in_channels": 3,
    "out_channels": 3,
    "caption_channels": 64,
}
pytestmark = pytest.mark.slow  # exports a model
PROBES = ("temporal.0.attn", "spatial.0.modulated")


def write_checkpoint(folder: Path) -> None:
    folder.mkdir()
    fields = {name: value for name, value in JSON.items() if name != "made_up"} | {"sample_size": (8, 8)}
    generator = torch.Generator().manual_seed(0)
    shapes = family.expected(LatteT2VConfig(**fields))
    weights = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(JSON))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The exported model, with a text encoder; the registry knows the family only meanwhile."""
    root = tmp_path_factory.mktemp("made-up")
    write_checkpoint(root / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.FAMILIES, family.NAME, family)
        chosen = {
            "granularity": "module",
            "probes": PROBES,
            "family": family.NAME,
            "text_encoder": DEMO / "text_encoder",
        }
        convert_quietly(root / "model", root / "bundle", **chosen)
    yield root / "bundle"


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(bundle) as opened:
        yield opened


@pytest.fixture
def manifest(pipeline: Pipeline) -> Manifest:
    return pipeline.bundle.manifest


def test_without_its_line_the_family_is_unknown(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    with pytest.raises(Exception, match="no family is called made-up-1"):
        convert_quietly(tmp_path / "model", tmp_path / "bundle", family=family.NAME)
    with pytest.raises(CheckpointError, match="lacks"):
        registry.recognise(["made.up"], JSON)


def test_the_manifest_says_what_the_family_does(manifest: Manifest) -> None:
    assert manifest.family == family.NAME
    assert [(stage.role, stage.kind, stage.index, stage.part) for stage in manifest.stages] == [
        ("text", None, None, None),
        ("positions", None, None, None),
        ("embed", None, None, None),
        *(("block", "spatial", 0, part) for part in ("attn", "cross", "mlp")),
        *(("block", "temporal", 0, part) for part in ("attn", "mlp")),
        ("final", None, None, None),
    ]
    assert [stage.per_generation for stage in manifest.stages] == [True] * 2 + [False] * 7
    both = ("patch_frames", "tokens")
    axes = [("text",), (), ("patch_frames",), ("patch_frames",), both, both, ("tokens",), both, ("patch_frames",)]
    assert [stage.independent_axes for stage in manifest.stages] == axes
    assert (manifest.sites("default"), manifest.sites("block_input")) == (PROBES[:1], PROBES[1:])
    assert manifest.names.sizes == {"tiny": {"16:8": (16, 8), "1:1": (8, 8)}}  # without what its profiles refuse
    assert durations_of(manifest) == {"2s": 4}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_policy_runs(kind: str, pipeline: Pipeline) -> None:
    policy: Policy[Any] = KINDS[kind][0]
    video = pipeline("a red circle", size="tiny", aspect="16:8", seed=3, policy=policy)
    assert video.frames.shape == (4, 8, 16, 3)
    assert len(video.trace.calls) == 6


def test_its_preset_saves_calls(pipeline: Pipeline) -> None:
    full, cached = (pipeline("a red circle", seed=3, policy=name) for name in ("never", "made-up-fast"))
    assert len(full.trace.computed()) == 6
    assert len(cached.trace.computed()) < 6
    assert not np.array_equal(full.latents, cached.latents)


def test_it_is_served(pipeline: Pipeline, tmp_path: Path) -> None:
    """An order is checked as the server does, and a worker makes its video."""
    shown = model_of("made-up", pipeline.bundle)
    assert [(size.name, size.aspect, size.aspects) for size in shown.sizes] == [
        ("tiny", "1:1", {"16:8": "16x8", "1:1": "8x8"})
    ]
    assert shown.durations == {"2s": 4}
    settings = Settings(tmp_path)
    order = CreateVideo(prompt="a red circle", size="tiny", aspect="16:8", seconds=2, seed=3, policy="made-up-fast")
    settled = check(order, pipeline.bundle, settings)
    assert (settled.width, settled.height, settled.frames) == (16, 8, 4)
    with pytest.raises(FieldError, match=r"size '480p' is unknown; .* or one of tiny"):
        check(order.model_copy(update={"size": "480p", "aspect": None}), pipeline.bundle, settings)
    ours, theirs = multiprocessing.Pipe()
    worker = Worker(theirs, {"made-up": pipeline}, settings)
    begin = Begin(job="1", attempt=1, model="made-up", order=order, output=str(tmp_path / "video"))
    ours.send_bytes(begin.model_dump_json().encode())
    said: list[Any] = []
    while not any(isinstance(message, Completed | Failed) for message in said):
        worker.turn()
        while ours.poll(0):
            said.append(from_worker.validate_json(ours.recv_bytes()))
    assert isinstance(said[-1], Completed)
    assert (tmp_path / said[-1].file).stat().st_size > 0
