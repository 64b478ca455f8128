"""CLIP's vision model: its stages give what transformers gives before the last layer, and bad folders are refused."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adacache_engines.bundle.manifest import ImageRule
from adacache_engines.errors import CheckpointError, InputError
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.image_encoders.registry import ImageEncoder, open_image_encoder
from adacache_export.parts.image_encoder import add_image, open_image
from adacache_export.phases import Progress
from adacache_runtime.conditioning.image_states import image_states
from adacache_runtime.media.pictures import middle_square
from tests.helpers.tiny_models import wan

pytestmark = pytest.mark.slow  # models of transformers, each saved and opened
TOLERANCE = 1e-5
WIDTH, SIDE = 16, 18
PREPROCESSING, CONFIG, WEIGHTS = "preprocessor_config.json", "config.json", "model.safetensors"


def saved(folder: Path, **changes: Any) -> Any:
    """Write a model and its processor as a pipeline does; return the model."""
    made = wan.image_encoder(**changes)
    made["image_encoder"].save_pretrained(folder / "image_encoder")
    made["image_processor"].save_pretrained(folder / "image_processor")
    return made["image_encoder"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(tmp_path)
    return tmp_path / "image_encoder"


def run_torch(encoder: ImageEncoder, pixels: torch.Tensor) -> torch.Tensor:
    for stage in encoder.stages:
        weights = {name: encoder.checkpoint.tensors[key].float() for name, key in stage.keys().items()}
        module = stage.module.to_empty(device="cpu")
        module.load_state_dict(weights)
        with torch.no_grad():
            pixels = module(pixels)
    return pixels


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": 1},
        {"layers": 4, "side": 20, "patch": 20},
        {"hidden_act": "gelu", "layer_norm_eps": 1e-2},
        {"hidden_act": "gelu_pytorch_tanh", "width": 6, "patch": 1, "side": 4, "shorter": 4},
    ],
)
def test_the_stages_give_the_states_before_the_last_layer(changes: dict[str, Any], tmp_path: Path) -> None:
    model = saved(tmp_path, **changes)
    encoder = open_image_encoder(tmp_path / "image_encoder")
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, encoder.rule.side, encoder.rule.side)
    with torch.no_grad():
        expected = model(pixels, output_hidden_states=True).hidden_states[-2]
    made = run_torch(encoder, pixels)
    assert made.shape == (1, encoder.rule.tokens, encoder.rule.width)
    assert (made - expected).abs().max() <= TOLERANCE
    assert {key for stage in encoder.stages for key in stage.keys().values()} == {*encoder.checkpoint.tensors}


def test_engines_of_a_part_give_what_transformers_makes_of_a_picture(tmp_path: Path) -> None:
    from PIL import Image

    made = wan.image_encoder()
    model, processor = made["image_encoder"], made["image_processor"]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)  # beside the weights
    encoder = open_image(tmp_path, ImageRule(tokens=257, width=WIDTH), Progress())
    (tmp_path / "bundle").mkdir()
    part, rule = add_image(tmp_path / "bundle", encoder, Progress())
    assert [graph.name for graph in rule.encoder_stages] == [f"image_encoder.{name}" for name in ("embed", "00", "01")]
    assert all(graph.check and graph.check.error <= graph.check.tolerance for graph in part.graphs.values())
    pixels = np.random.default_rng(2).integers(0, 256, (31, 23, 3), np.uint8)
    with torch.no_grad():
        given = processor(images=Image.fromarray(pixels), return_tensors="pt")
        expected = model(**given, output_hidden_states=True).hidden_states[-2].numpy()
    square = middle_square(pixels[None], rule.shorter, rule.side)
    states = image_states(rule, OrtBackend(tmp_path / "bundle"), square)
    np.testing.assert_allclose(states, expected, atol=1e-4)


LAYOUTS: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "older": lambda state: {
        **{f"vision_model.{name}": value for name, value in state.items()},
        "vision_model.embeddings.position_ids": torch.arange(10),
    },
    "with a projection": lambda state: {**state, "visual_projection.weight": torch.zeros(2, 2)},
    "half precision": lambda state: {name: value.bfloat16() for name, value in state.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, folder: Path) -> None:
    expected = open_image_encoder(folder).checkpoint.tensors
    save_file(LAYOUTS[layout](load_file(folder / WEIGHTS)), folder / WEIGHTS)
    made = open_image_encoder(folder).checkpoint.tensors
    assert made.keys() == expected.keys()
    for name, value in made.items():
        assert torch.equal(value, expected[name].to(value.dtype))


def test_an_encoder_of_another_width_and_a_model_without_images_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="gives states of width 16, the model takes 1280"):
        open_image(folder, ImageRule(tokens=257, width=1280), Progress())
    with pytest.raises(InputError, match="attends to no states of an image; leave the option out"):
        open_image(folder, None, Progress())


def write_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def spoil_weights(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def first_layer(tensors: dict[str, Any]) -> str:
    return next(name for name in tensors if name.endswith("encoder.layers.0.mlp.fc1.bias"))


SPOILT: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda folder: (folder / CONFIG).unlink(), "has neither config.json with weights nor"),
    "another kind": (
        lambda folder: write_json(folder / CONFIG, model_type="siglip_vision_model"),
        "model_type is 'siglip_vision_model'; expected an image encoder of type clip_vision_model",
    ),
    "an activation": (lambda folder: write_json(folder / CONFIG, hidden_act="relu"), "hidden_act: Input should be"),
    "heads": (lambda folder: write_json(folder / CONFIG, num_attention_heads=3), "expected a multiple of"),
    "patches": (lambda folder: write_json(folder / CONFIG, patch_size=19), "expected at most image_size, 18"),
    "a missing tensor": (lambda folder: spoil_weights(folder, lambda t: t.pop(first_layer(t))), "missing"),
    "more layers": (lambda folder: write_json(folder / CONFIG, num_hidden_layers=2), "unexpected"),
    "NaN": (lambda folder: spoil_weights(folder, lambda t: t[first_layer(t)].fill_(torch.nan)), "NaN"),
    "no preparation": (
        lambda folder: (folder.parent / "image_processor" / PREPROCESSING).unlink(),
        "has no preprocessor_config.json, and neither has image_processor beside it",
    ),
    "another size": (
        lambda folder: write_json(folder.parent / "image_processor" / PREPROCESSING, crop_size=16),
        "takes images of 18 pixels each way, and they are prepared with 16",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_folders_are_refused(case: str, folder: Path) -> None:
    spoil, message = SPOILT[case]
    spoil(folder)
    with pytest.raises(CheckpointError) as caught:
        open_image_encoder(folder)
    assert message in str(caught.value)
    assert str(folder.parent) in str(caught.value)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder; expected one with"):
        open_image_encoder(tmp_path / "model.safetensors")


PREPARATIONS: Mapping[str, tuple[dict[str, Any], str]] = {
    "processor": ({"image_processor_type": "ViTImageProcessor"}, "image_processor_type is not CLIP's"),
    "no crop": ({"do_center_crop": False}, "do_center_crop is not true"),
    "filter": ({"resample": 2}, "resample is not 3, which is bicubic"),
    "both sides": ({"size": {"height": 20, "width": 20}}, "size is not that of the shortest edge in pixels"),
    "no number": ({"size": "large"}, "size is not that of the shortest edge in pixels"),
    "oblong": ({"crop_size": {"height": 18, "width": 20}}, "crop_size is not that of a square in pixels"),
    "smaller": ({"size": {"shortest_edge": 16}}, "size is smaller than crop_size"),
    "scale": ({"rescale_factor": 0}, "rescale_factor is not a positive number"),
    "mean": ({"image_mean": [0.5, "half", 0.5]}, "image_mean is not three numbers"),
    "deviation": ({"image_std": [0.5, 0, 0.5]}, "image_std is not three positive numbers"),
    "one deviation": ({"image_std": 0.5}, "image_std is not three positive numbers"),
}


@pytest.mark.parametrize("case", PREPARATIONS)
def test_other_preparations_are_refused(case: str, folder: Path) -> None:
    changes, message = PREPARATIONS[case]
    write_json(folder.parent / "image_processor" / PREPROCESSING, **changes)
    with pytest.raises(CheckpointError) as caught:
        open_image_encoder(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_short_preparation_has_clips_defaults(folder: Path) -> None:
    expected = open_image_encoder(folder).rule
    file = folder.parent / "image_processor" / PREPROCESSING
    file.write_text(json.dumps({"crop_size": SIDE, "size": 20, "feature_extractor_type": "CLIPFeatureExtractor"}))
    assert open_image_encoder(folder).rule == expected
