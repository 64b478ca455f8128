"""Open-Sora-Plan's CausalVAE: modules and engine against the same written down once more, and the published keys."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from causal_vae_reference import PUBLISHED, RELEASE, Reference
from reference import run_graph, worst
from torch.nn import functional as F

from adacache_engines.errors import CheckpointError
from adacache_engines.manifest import Graph
from adacache_engines.ort import OrtBackend
from adacache_engines.tensors import TensorSpec
from adacache_export.models.causal_vae import SCALING_FACTOR, CausalVaeConfig, ClipDecoder, ClipEncoder, latents_of
from adacache_export.models.causal_vae_layers import TimeUpsample2x
from adacache_export.onnx_export import trace, write_graph
from adacache_export.stages import Stage
from adacache_export.weights_file import write_weights

SMALL = {"hidden_size": 32, "hidden_size_mult": [1, 1, 2, 2], "num_res_blocks": 1}
TWO_LEVELS = {  # fewer, because every node costs time to export
    "hidden_size_mult": [1, 2],
    "encoder_resnet_blocks": ["ResnetBlock3D"] * 2,
    "encoder_spatial_downsample": ["Downsample", ""],
    "encoder_temporal_downsample": ["TimeDownsample2x", ""],
    "decoder_resnet_blocks": ["ResnetBlock3D"] * 2,
    "decoder_spatial_upsample": ["", "SpatialUpsample2x"],
}
SHAPES = {"published": PUBLISHED, "release.json": RELEASE}
TOLERANCE = 1e-5


def small(shape: str) -> CausalVaeConfig:
    return CausalVaeConfig.from_json(SHAPES[shape] | SMALL)


def random(module: torch.nn.Module) -> torch.nn.Module:
    """With weights that keep the scale of what they are given, so that each part counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(generator=generator)
            if parameter.ndim > 1:
                parameter *= parameter[0].numel() ** -0.5
            elif "norm" in name and name.endswith("weight"):
                parameter.mul_(0.1).add_(1)
            elif name.endswith("bias"):
                parameter *= 0.1
    return module.eval()


def values(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def decoder(shape: str) -> torch.nn.Module:
    return random(ClipDecoder(small(shape)))


@pytest.fixture(scope="module")
def encoder(shape: str) -> torch.nn.Module:
    return random(ClipEncoder(small(shape)))


def reference(module: torch.nn.Module, shape: str) -> Reference:
    return Reference(module.state_dict(), small(shape).model_dump())


# the mathematics


@pytest.mark.parametrize("size", [(1, 2, 3), (2, 3, 2), (3, 1, 2), (5, 2, 2)], ids=str)
@torch.no_grad()
def test_decoder(size: tuple[int, ...], shape: str, decoder: torch.nn.Module) -> None:
    latents = values(2, 4, *size)
    pixels, frames = decoder(latents), 4 * (size[0] - 1) + 1
    assert pixels.shape == (2, 3, frames, 8 * size[1], 8 * size[2])
    for given, made in zip(latents, pixels, strict=True):
        expected = reference(decoder, shape).decode(given / SCALING_FACTOR)
        assert (made - expected).abs().max() < TOLERANCE
        assert 0.1 < expected.std() < 10


@pytest.mark.parametrize("size", [(1, 16, 24), (2, 8, 16), (5, 16, 8), (6, 8, 8), (9, 16, 16)], ids=str)
@torch.no_grad()
def test_encoder(size: tuple[int, ...], shape: str, encoder: torch.nn.Module) -> None:
    pixels = values(2, 3, *size)
    moments = encoder(pixels)
    halved = (size[0] - 1) // 2 + 1
    assert moments.shape == (2, 8, (halved - 1) // 2 + 1, size[1] // 8, size[2] // 8)
    for given, made in zip(pixels, moments, strict=True):
        assert (made - reference(encoder, shape).encode(given)).abs().max() < TOLERANCE


@torch.no_grad()
def test_17_latent_frames_are_65_frames(decoder: torch.nn.Module, encoder: torch.nn.Module) -> None:
    assert decoder(values(1, 4, 17, 1, 1)).shape == (1, 3, 65, 8, 8)
    assert encoder(values(1, 3, 65, 8, 8)).shape == (1, 8, 17, 1, 1)


@pytest.mark.parametrize("frames", [1, 2, 3, 8])
def test_time_is_interpolated_behind_the_first_frame(frames: int) -> None:
    x = values(1, 2, frames, 3, 3)
    made = TimeUpsample2x(2)(x)
    assert torch.equal(made[:, :, 0], x[:, :, 0])
    if frames > 1:
        rest = F.interpolate(x[:, :, 1:], scale_factor=(2, 1, 1), mode="trilinear")
        assert (made[:, :, 1:] - rest).abs().max() < 1e-6


@torch.no_grad()
def test_convolutions_see_no_later_frame(encoder: torch.nn.Module) -> None:
    layer = encoder.get_submodule("encoder.down.2.block.0.conv1")
    x = values(1, 32, 5, 4, 4)
    changed = torch.cat([x[:, :, :3], values(1, 32, 2, 4, 4)], 2)
    made, others = layer(x), layer(changed)
    assert torch.equal(made[:, :, :3], others[:, :, :3])
    assert not torch.equal(made[:, :, 3], others[:, :, 3])


def test_latents_are_a_sample_of_the_posterior() -> None:
    mean, log_variance, noise = values(3, 1, 4, 2, 3, 3)
    log_variance = 50 * log_variance  # some beyond either end
    expected = 0.18215 * (mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * noise)
    assert torch.allclose(latents_of(torch.cat([mean, log_variance], 1), noise), expected)
    assert torch.equal(latents_of(torch.cat([mean, log_variance], 1), 0.0), 0.18215 * mean)


# the published file


def pair(name: str) -> Iterator[str]:
    yield from (f"{name}.weight", f"{name}.bias")


def convolution(name: str, image: bool = False) -> Iterator[str]:
    return pair(name if image else f"{name}.conv")


def block(name: str, image: bool = False, shortcut: bool = False) -> Iterator[str]:
    for i in (1, 2):
        yield from pair(f"{name}.norm{i}")
        yield from convolution(f"{name}.conv{i}", image)
    if shortcut:
        yield from convolution(f"{name}.nin_shortcut", image)


def both_halves(half: str) -> Iterator[str]:
    yield from convolution(f"{half}.conv_out")
    yield from pair(f"{half}.norm_out")
    for i in (1, 2):
        yield from block(f"{half}.mid.block_{i}")
    yield from pair(f"{half}.mid.attn_1.norm")
    for part in ("q", "k", "v", "proj_out"):
        yield from convolution(f"{half}.mid.attn_1.{part}")


def decoder_keys(learned: bool) -> Iterator[str]:
    yield from both_halves("decoder")
    yield from convolution("decoder.conv_in")
    yield from convolution("post_quant_conv")
    for level in range(4):
        for i in range(3):
            yield from block(f"decoder.up.{level}.block.{i}", shortcut=i == 0 and level < 2)
        if level:
            yield from convolution(f"decoder.up.{level}.upsample.conv")
        if learned and level > 1:
            yield from convolution(f"decoder.up.{level}.time_upsample.conv")
            yield f"decoder.up.{level}.time_upsample.mix_factor"


def encoder_keys(learned: bool) -> Iterator[str]:
    yield from both_halves("encoder")
    yield from convolution("encoder.conv_in", image=learned)
    yield from convolution("quant_conv")
    for level in range(4):
        for i in range(2):
            image = learned and level < 2
            yield from block(f"encoder.down.{level}.block.{i}", image, shortcut=i == 0 and level in (1, 2))
        if level < 3:
            yield from convolution(f"encoder.down.{level}.downsample.conv", image=learned)
        if learned and level in (1, 2):
            yield from pair(f"encoder.down.{level}.time_downsample.conv")
            yield f"encoder.down.{level}.time_downsample.mix_factor"


def shapes(kind: Callable[[CausalVaeConfig], torch.nn.Module], config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        module = kind(CausalVaeConfig.from_json(config))
    assert all(parameter.is_meta for parameter in module.parameters())
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize(("learned", "count", "size"), [(True, 260, 246_859_499), (False, 248, 229_169_895)])
def test_published_keys(learned: bool, count: int, size: int) -> None:
    """The numbers are those of the original's class."""
    config = PUBLISHED if learned else RELEASE
    decoder, encoder = shapes(ClipDecoder, config), shapes(ClipEncoder, config)
    assert set(decoder) == set(decoder_keys(learned))
    assert set(encoder) == set(encoder_keys(learned))
    both = decoder | encoder
    assert len(both) == count
    assert sum(map(math.prod, both.values())) == size


def test_published_shapes() -> None:
    known = shapes(ClipDecoder, PUBLISHED) | shapes(ClipEncoder, PUBLISHED)
    sample = {
        "decoder.conv_in.conv.weight": (512, 4, 3, 3, 3),
        "decoder.mid.attn_1.q.conv.weight": (512, 512, 1, 1, 1),
        "decoder.up.3.time_upsample.conv.conv.weight": (512, 512, 3, 3, 3),
        "decoder.up.2.time_upsample.mix_factor": (1,),
        "decoder.up.1.upsample.conv.conv.weight": (256, 256, 1, 3, 3),
        "decoder.up.1.block.0.nin_shortcut.conv.weight": (256, 512, 1, 1, 1),
        "decoder.up.0.block.0.conv1.conv.weight": (128, 256, 3, 3, 3),
        "decoder.conv_out.conv.weight": (3, 128, 3, 3, 3),
        "post_quant_conv.conv.weight": (4, 4, 1, 1, 1),
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.1.time_downsample.conv.weight": (256, 256, 3, 3, 3),
        "encoder.down.2.block.0.conv1.conv.weight": (512, 256, 3, 3, 3),
        "encoder.conv_out.conv.weight": (8, 512, 3, 3, 3),
        "quant_conv.conv.weight": (8, 8, 1, 1, 1),
    }
    assert {name: known[name] for name in sample} == sample


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"decoder_attention": "AttnBlock"}, "decoder_attention"),
        ({"decoder_temporal_upsample": ["", "", "", "TimeUpsampleResAdv2x"]}, "TimeUpsampleRes2x"),
        ({"decoder_spatial_upsample": ["", "", "Spatial2xTime2x3DUpsample", ""]}, "decoder_spatial_upsample.2"),
        ({"attn_resolutions": [16]}, "attn_resolutions"),
        ({"double_z": False}, "double_z"),
        ({"hidden_size": 48}, "hidden_size: expected a multiple of 32"),
        ({"hidden_size_mult": [1, 2]}, "encoder_resnet_blocks: expected 2 entries"),
        ({"encoder_spatial_downsample": ["Downsample"] * 4}, "encoder_spatial_downsample: expected an empty last"),
        ({"encoder_temporal_downsample": [""] * 4}, "decoder_temporal_upsample: expected as many"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_supported_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        CausalVaeConfig.from_json(PUBLISHED | change)


# the engine


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "upsample"), [("AttnBlock3DFix", "TimeUpsampleRes2x"), ("AttnBlock3D", "TimeUpsample2x")]
)
def test_engine_of_any_size(attention: str, upsample: str, tmp_path: Path) -> None:
    kinds = {"decoder_attention": attention, "decoder_temporal_upsample": ["", upsample]}
    config = CausalVaeConfig.from_json(SMALL | TWO_LEVELS | kinds)
    latents = TensorSpec(name="latents", dtype="float32", axes=(1, 4, "frames", "height", "width"))
    axes = (1, 3, "pixel_frames", "pixel_height", "pixel_width")
    pixels = TensorSpec(name="pixels", dtype="float32", axes=axes)
    with torch.device("meta"):
        module = ClipDecoder(config).eval()
    stage = Stage("decoder", "decoder", module, "vae.", (latents,), (pixels,))
    traced = trace(stage, {"frames": 3, "height": 2, "width": 3})
    decoder = random(ClipDecoder(config))
    tensors = {key: decoder.get_parameter(name).detach() for name, key in stage.keys().items()}
    known = {key: tuple(value.shape) for key, value in tensors.items()}
    weights = tmp_path / "weights.safetensors"
    locations = write_weights(weights, known, dict.fromkeys(known, "float32"), tensors.__getitem__)
    write_graph(tmp_path / "decoder.onnx", traced, stage, weights, locations)
    backend = OrtBackend(tmp_path)
    graph = Graph(name="decoder", path="decoder.onnx", inputs=stage.inputs, outputs=stage.outputs)
    for size in ((5, 3, 2), (2, 1, 4), (1, 2, 2)):
        given = values(1, 4, *size)
        sizes = dict(zip(("frames", "height", "width"), size, strict=True))
        made = {"pixel_frames": 2 * size[0] - 1, "pixel_height": 2 * size[1], "pixel_width": 2 * size[2]}
        with torch.no_grad():
            expected = decoder(given).numpy()
        got = run_graph(backend, graph, {"latents": given.numpy()}, sizes | made)["pixels"]
        assert worst(got, expected) < TOLERANCE
