"""diffusers' AutoencoderKLTemporalDecoder as a module: one graph decodes windows of any length."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder
from reference import run_graph, worst

from adacache_engines.errors import CheckpointError
from adacache_engines.manifest import Graph
from adacache_engines.ort import OrtBackend
from adacache_engines.tensors import TensorSpec
from adacache_export.models.temporal_decoder import OTHER_HALF, TemporalDecoderConfig, WindowDecoder
from adacache_export.onnx_export import trace, write_graph
from adacache_export.stages import Stage
from adacache_export.weights_file import write_weights

PUBLISHED: dict[str, Any] = {
    "_class_name": "AutoencoderKLTemporalDecoder",
    "block_out_channels": [128, 256, 512, 512],
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "sample_size": 768,
    "scaling_factor": 0.18215,
}
SMALL = {"block_out_channels": [32, 64], "layers_per_block": 2}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def original() -> AutoencoderKLTemporalDecoder:
    torch.manual_seed(0)
    vae = AutoencoderKLTemporalDecoder(**SMALL, down_block_types=("DownEncoderBlock2D",) * 2).eval()
    for name, parameter in vae.named_parameters():
        if name.endswith("mix_factor"):
            torch.nn.init.normal_(parameter)
    return vae


@pytest.fixture(scope="module")
def module(original: AutoencoderKLTemporalDecoder) -> Iterator[torch.nn.Module]:
    module = WindowDecoder(TemporalDecoderConfig.from_json(SMALL)).eval()
    given = {name: value for name, value in original.state_dict().items() if not name.startswith(OTHER_HALF)}
    module.load_state_dict(given, strict=True)
    with torch.no_grad():
        yield module


def window(frames: int, height: int = 3, width: int = 5) -> torch.Tensor:
    return torch.randn((frames, 4, height, width), generator=torch.Generator().manual_seed(frames))


@torch.no_grad()
def decoded(vae: AutoencoderKLTemporalDecoder, latents: torch.Tensor) -> torch.Tensor:
    """As Latte's sampling code calls it."""
    pixels: torch.Tensor = vae.decode(latents / 0.18215, num_frames=len(latents)).sample
    return pixels


@pytest.mark.parametrize("frames", [14, 2, 1])
def test_module_equals_diffusers(frames: int, module: torch.nn.Module, original: AutoencoderKLTemporalDecoder) -> None:
    pixels = module(window(frames))
    assert pixels.shape == (frames, 3, 6, 10)
    assert torch.equal(pixels, decoded(original, window(frames)))


def test_frames_of_a_window_are_mixed(module: torch.nn.Module) -> None:
    two = window(2)
    assert (module(two)[:1] - module(two[:1])).abs().max() > 0.01


@pytest.mark.slow
def test_engine_decodes_windows_of_any_length(
    module: torch.nn.Module, original: AutoencoderKLTemporalDecoder, tmp_path: Path
) -> None:
    latents = TensorSpec(name="latents", dtype="float32", axes=("images", 4, "height", "width"))
    pixels = TensorSpec(name="pixels", dtype="float32", axes=("images", 3, "pixel_height", "pixel_width"))
    with torch.device("meta"):
        empty = WindowDecoder(TemporalDecoderConfig.from_json(SMALL)).eval()
    stage = Stage("decoder", "decoder", empty, "vae.", (latents,), (pixels,))
    traced = trace(stage, {"images": 3, "height": 4, "width": 3})
    tensors = {key: module.get_parameter(name).detach() for name, key in stage.keys().items()}
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    weights = tmp_path / "weights.safetensors"
    locations = write_weights(weights, shapes, dict.fromkeys(shapes, "float32"), tensors.__getitem__)
    write_graph(tmp_path / "decoder.onnx", traced, stage, weights, locations)
    backend = OrtBackend(tmp_path)
    graph = Graph(name="decoder", path="decoder.onnx", inputs=stage.inputs, outputs=stage.outputs)
    for frames, height, width in ((14, 3, 5), (2, 5, 2), (1, 2, 3), (70, 2, 2)):
        given = window(frames, height, width)
        sizes = {"images": frames, "height": height, "width": width}
        sizes |= {"pixel_height": 2 * height, "pixel_width": 2 * width}
        got = run_graph(backend, graph, {"latents": given.numpy()}, sizes)["pixels"]
        assert worst(got, decoded(original, given).numpy()) < TOLERANCE


def test_published_keys() -> None:
    config = TemporalDecoderConfig.from_json(PUBLISHED)
    assert config.spatial_factor == 8
    with torch.device("meta"):
        module = WindowDecoder(config)
        whole = AutoencoderKLTemporalDecoder(
            **{name: value for name, value in PUBLISHED.items() if not name.startswith("_")},
            down_block_types=("DownEncoderBlock2D",) * 4,
        )
    assert set(module.state_dict()) == {name for name in whole.state_dict() if not name.startswith(OTHER_HALF)}
    sample = {
        "decoder.conv_in.weight": (512, 4, 3, 3),
        "decoder.mid_block.attentions.0.to_q.weight": (512, 512),
        "decoder.up_blocks.0.resnets.0.temporal_res_block.conv1.weight": (512, 512, 3, 1, 1),
        "decoder.up_blocks.3.resnets.0.time_mixer.mix_factor": (1,),
        "decoder.time_conv_out.weight": (3, 3, 3, 1, 1),
    }
    assert {name: tuple(module.get_parameter(name).shape) for name in sample} == sample


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"out_channels": 4}, "out_channels"),
        ({"block_out_channels": [48]}, "block_out_channels: expected multiples of 32"),
        ({"block_out_channels": None}, "block_out_channels"),
    ],
)
def test_what_is_not_supported_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        TemporalDecoderConfig.from_json(PUBLISHED | change)
