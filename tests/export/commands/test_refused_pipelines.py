"""Folders of pipelines that cannot be exported: a line says why, and nothing is left."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adacache_export.commands.export import main as export
from adacache_export.families.registry import FAMILIES
from adacache_export.families.wan.config import WanConfig

CONFIG = {
    "_class_name": "WanTransformer3DModel",
    "num_attention_heads": 1,
    "attention_head_dim": 6,
    "text_dim": 4,
    "freq_dim": 4,
    "ffn_dim": 4,
    "num_layers": 1,
}
SCHEDULER = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_json(path: Path, **changes: Any) -> None:
    """Write a JSON file, or change some of its values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline of two experts with zero weights, to spoil."""
    made = tmp_path / "pipeline"
    fields = {name: value for name, value in CONFIG.items() if not name.startswith("_")}
    tensors = {name: torch.zeros(shape) for name, shape in FAMILIES["wan"].expected(WanConfig(**fields)).items()}  # type: ignore[arg-type]
    for name in ("transformer", "transformer_2"):
        write_json(made / name / "config.json", **CONFIG)
        save_file(tensors, made / name / WEIGHTS)
    write_json(made / "scheduler" / "scheduler_config.json", **SCHEDULER)
    named = {name: ["diffusers", CONFIG["_class_name"]] for name in ("transformer", "transformer_2")}
    scheduler = ["diffusers", SCHEDULER["_class_name"]]
    write_json(made / "model_index.json", **named, scheduler=scheduler, vae=[None, None], boundary_ratio=0.875)
    return made


def replace_weights(folder: Path, part: str, name: str) -> None:
    save_file({name: torch.zeros(2, 2)}, folder / part / WEIGHTS)


REFUSED: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "part": (lambda folder: shutil.rmtree(folder / "transformer_2"), "has no folder transformer_2"),
    "VAE": (
        lambda folder: write_json(folder / "model_index.json", vae=["diffusers", "AutoencoderKLWan"]),
        "has no folder vae",
    ),
    "LoRA": (
        lambda folder: replace_weights(folder, "transformer", "blocks.0.attn1.to_q.lora_A.weight"),
        "the weights of a LoRA",
    ),
    "LoRA of an expert": (
        lambda folder: replace_weights(folder, "transformer_2", "blocks.0.attn1.to_q.lora_A.weight"),
        "transformer_2: these are the weights of a LoRA",
    ),
    "other weights": (
        lambda folder: replace_weights(folder, "transformer_2", "x_embedder.weight"),
        "x_embedder.weight) are those of no known family",
    ),
    "other class": (
        lambda folder: write_json(folder / "transformer" / "config.json", _class_name="WanVACETransformer3DModel"),
        "WanVACETransformer3DModel, which is not supported",
    ),
    "other size": (
        lambda folder: write_json(folder / "transformer_2" / "config.json", eps=1e-5),
        "have different configurations",
    ),
    "scheduler": (
        lambda folder: write_json(folder / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler"),
        "asks for DDIMScheduler",
    ),
    "boundary": (lambda folder: write_json(folder / "model_index.json", boundary_ratio=None), "boundary_ratio None"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_told_in_a_line(
    case: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, told = REFUSED[case]
    spoil(folder)
    assert export([str(folder), "-o", str(tmp_path / "bundle"), "--backend", "onnxruntime"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("adacache-export: ")] == lines[-1:]
    assert told in lines[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]


def test_an_image_encoder_that_the_model_has_no_use_for_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that the folder names is left out, in a sentence."""
    command = [str(folder), "-o", str(tmp_path / "bundle"), "--backend", "onnxruntime"]
    assert export([*command, "--image-encoder", str(folder)]) == 1
    assert "this model attends to no states of an image; leave the option out" in capsys.readouterr().err
    for name in ("image_encoder", "image_processor"):
        (folder / name).mkdir()
    named = {name: ["transformers", "CLIP"] for name in ("image_encoder", "image_processor")}
    write_json(folder / "model_index.json", boundary_ratio=0.875, **named)
    assert export([*command, "--vae", str(folder / "none")]) == 1  # so that nothing is exported
    assert "left out the image encoder, because this model attends to no states" in "".join(capsys.readouterr())
    assert not (tmp_path / "bundle").exists()
