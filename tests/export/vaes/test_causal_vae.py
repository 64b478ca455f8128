"""The decoder of Open-Sora-Plan's CausalVAE: against the same written down once more, and the published keys."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.bundle.latent_space import ChunkRule
from adacache_engines.errors import CheckpointError
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.vaes.causal_vae.layers import TimeUpsample2x
from adacache_export.vaes.causal_vae.modules import SCALING_FACTOR, CausalVaeConfig, ClipDecoder
from adacache_export.vaes.coding import PREFIX
from adacache_export.vaes.registry import open_vae
from adacache_runtime.commands.run import main as run_command
from adacache_runtime.media.video import to_pixels
from adacache_runtime.samplers.update import Floats
from tests.helpers.originals.causal_chunks_reference import in_pieces
from tests.helpers.originals.causal_vae_reference import PUBLISHED, RELEASE, Reference
from tests.helpers.originals.reference import arrays, worst
from tests.helpers.tiny_models.exporting import DATA, convert_quietly
from tests.helpers.tiny_models.vae_bundle import (
    OPEN_SORA_PLAN_LATENT,
    alone,
    build_vae_plans,
    causal_vae_config,
    decoded_at_once,
    random_weights,
    stage_of,
    write_causal_vae,
    write_vae_bundle,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"
HALVED = OPEN_SORA_PLAN_LATENT.model_copy(update={"spatial_factor": 2})
SMALL = {"hidden_size": 32, "hidden_size_mult": [1, 1, 2, 2], "num_res_blocks": 1}
SHAPES = {"published": PUBLISHED, "release.json": RELEASE}
TOLERANCE = 2e-5  # two float32 implementations, whose rounding also depends on the processor


def small(shape: str) -> CausalVaeConfig:
    return CausalVaeConfig.from_json(SHAPES[shape] | SMALL)


def values(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def decoder(shape: str) -> torch.nn.Module:
    return random_weights(ClipDecoder(small(shape)))


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


@torch.no_grad()
def test_17_latent_frames_are_65_frames(decoder: torch.nn.Module) -> None:
    assert decoder(values(1, 4, 17, 1, 1)).shape == (1, 3, 65, 8, 8)


@pytest.mark.parametrize("frames", [1, 2, 3, 8])
def test_time_is_interpolated_behind_the_first_frame(frames: int) -> None:
    x = values(1, 2, frames, 3, 3)
    made = TimeUpsample2x(2)(x)
    assert torch.equal(made[:, :, 0], x[:, :, 0])
    if frames > 1:
        rest = F.interpolate(x[:, :, 1:], scale_factor=(2, 1, 1), mode="trilinear")
        assert (made[:, :, 1:] - rest).abs().max() < 1e-6


@torch.no_grad()
def test_convolutions_see_no_later_frame(decoder: torch.nn.Module) -> None:
    layer = decoder.get_submodule("decoder.up.2.block.0.conv1")
    x = values(1, 64, 5, 4, 4)
    changed = torch.cat([x[:, :, :3], values(1, 64, 2, 4, 4)], 2)
    made, others = layer(x), layer(changed)
    assert torch.equal(made[:, :, :3], others[:, :, :3])
    assert not torch.equal(made[:, :, 3], others[:, :, 3])


# the published file


def pair(name: str) -> Iterator[str]:
    yield from (f"{name}.weight", f"{name}.bias")


def block(name: str, shortcut: bool = False) -> Iterator[str]:
    for i in (1, 2):
        yield from pair(f"{name}.norm{i}")
        yield from pair(f"{name}.conv{i}.conv")
    if shortcut:
        yield from pair(f"{name}.nin_shortcut.conv")


def decoder_keys(learned: bool) -> Iterator[str]:
    for name in ("post_quant_conv.conv", "decoder.conv_in.conv", "decoder.norm_out", "decoder.conv_out.conv"):
        yield from pair(name)
    for i in (1, 2):
        yield from block(f"decoder.mid.block_{i}")
    yield from pair("decoder.mid.attn_1.norm")
    for part in ("q", "k", "v", "proj_out"):
        yield from pair(f"decoder.mid.attn_1.{part}.conv")
    for level in range(4):
        for i in range(3):
            yield from block(f"decoder.up.{level}.block.{i}", shortcut=i == 0 and level < 2)
        if level:
            yield from pair(f"decoder.up.{level}.upsample.conv.conv")
        if learned and level > 1:
            yield from pair(f"decoder.up.{level}.time_upsample.conv.conv")
            yield f"decoder.up.{level}.time_upsample.mix_factor"


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        module = ClipDecoder(CausalVaeConfig.from_json(config))
    assert all(parameter.is_meta for parameter in module.parameters())
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize(("learned", "count", "size"), [(True, 146, 149_510_169), (False, 140, 135_353_367)])
def test_published_keys(learned: bool, count: int, size: int) -> None:
    """The numbers are those of the original's class."""
    known = shapes(PUBLISHED if learned else RELEASE)
    assert set(known) == set(decoder_keys(learned))
    assert len(known) == count
    assert sum(map(math.prod, known.values())) == size


def test_published_shapes() -> None:
    known = shapes(PUBLISHED)
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
    }
    assert {name: known[name] for name in sample} == sample


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"decoder_attention": "AttnBlock"}, "decoder_attention"),
        ({"decoder_temporal_upsample": ["", "", "", "TimeUpsampleResAdv2x"]}, "TimeUpsampleRes2x"),
        ({"decoder_spatial_upsample": ["", "", "Spatial2xTime2x3DUpsample", ""]}, "decoder_spatial_upsample.2"),
        ({"attn_resolutions": [16]}, "attn_resolutions"),
        ({"decoder_conv_in": "Conv2d"}, "decoder_conv_in"),
        ({"hidden_size": 48}, "hidden_size: expected a multiple of 32"),
        ({"hidden_size_mult": [1, 2]}, "decoder_resnet_blocks: expected 2 entries"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_supported_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        CausalVaeConfig.from_json(PUBLISHED | change)


# the folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "vae"
    write_causal_vae(folder, levels=4)
    return folder


@pytest.fixture
def spoilt(folder: Path, tmp_path: Path) -> Path:
    """One to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "vae"))


def of_training(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save({"state_dict": tensors, "epoch": 3}, folder / "checkpoint-1.ckpt")


@pytest.mark.parametrize("layout", [lambda _folder: None, of_training], ids=["of diffusers", "of training"])
def test_folder(layout: Callable[[Path], None], spoilt: Path) -> None:
    layout(spoilt)
    vae = open_vae(spoilt, OPEN_SORA_PLAN_LATENT)
    decoder = random_weights(ClipDecoder(CausalVaeConfig.from_json(causal_vae_config(levels=4))))
    assert set(vae.checkpoint.tensors) == {PREFIX + name for name in decoder.state_dict()}
    latents = values(1, 4, 2, 1, 2)
    with torch.no_grad():
        assert torch.equal(stage_of(vae)(latents), decoder(latents))
    assert type(vae.config).model_validate(json.loads(vae.config.model_dump_json())) == vae.config
    fed = vae.added_to(OPEN_SORA_PLAN_LATENT, {})
    assert fed.chunks == ChunkRule(frames=65, latents=17, stretch=4, short=3, shared=1)
    assert (fed.tile, fed.tiles_chunks, fed.images) == (256, True, 1)


# the engine: two levels, because every node costs time to export

OLDER = {"decoder_attention": "AttnBlock3D", "decoder_temporal_upsample": ["TimeUpsample2x"] * 2}


@pytest.fixture(scope="module", params=["published", "release.json"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """The VAE's folder and a bundle of it."""
    root = tmp_path_factory.mktemp("exported")
    write_causal_vae(root / "vae", 2, **(OLDER if request.param == "release.json" else {}))
    write_vae_bundle(root / "bundle", root / "vae", HALVED)
    return root / "vae", open_bundle(root / "bundle")


@pytest.mark.slow
@torch.no_grad()
def test_engine_decodes_clips_of_any_length(exported: tuple[Path, Bundle]) -> None:
    """Videos of one frame, of 65 and of 221, in the original's chunks and tiles, which here are of 8 latent columns."""
    folder, bundle = exported
    module = stage_of(open_vae(folder, HALVED))
    tiled = alone(bundle, tile=16)
    backend = OrtBackend(bundle.folder)

    def run(latents: Floats) -> Floats:
        return module(torch.from_numpy(np.ascontiguousarray(latents))[None])[0].numpy()

    for size in ((1, 3, 2), (17, 2, 3), (17, 9, 4), (56, 2, 3)):
        given = values(4, *size).numpy()
        made = decoded_at_once(tiled, backend, given, frames=4 * size[0] - 3)
        assert worst(made, in_pieces(given, run, 17, 8, 2)) < TOLERANCE
        if size[0] <= 17:
            assert worst(decoded_at_once(bundle, backend, given), run(given)) < TOLERANCE


@pytest.mark.slow
def test_plans(exported: tuple[Path, Bundle], tmp_path: Path) -> None:
    _, bundle = exported
    assert "decoder" in build_vae_plans(bundle.folder, tmp_path, "8x8..16x16:1f..29f")


@pytest.mark.slow
def test_a_run_ends_in_a_video(folder: Path, tmp_path: Path) -> None:
    convert_quietly(DATA / "open-sora-plan", tmp_path / "bundle", vae=folder)
    given = arrays(DATA / "open-sora-plan" / "inputs.npz")
    np.savez(tmp_path / "text.npz", embeddings=given["cfg_text"], negative=given["cfg_neg"])
    command = [str(tmp_path / "bundle"), "--text-embeddings", str(tmp_path / "text.npz"), "--steps", "4"]
    command += ["--size", "48x32", "--frames", "17", "--save-latents", str(tmp_path / "latents.npz")]
    assert run_command([*command, "-o", str(tmp_path / "clip.npz")]) == 0
    frames, latents = arrays(tmp_path / "clip.npz")["frames"], arrays(tmp_path / "latents.npz")["latents"]
    assert latents.shape == (1, 4, 5, 4, 6)
    assert frames.shape == (17, 32, 48, 3)
    with torch.no_grad():
        pixels = stage_of(open_vae(folder, OPEN_SORA_PLAN_LATENT))(torch.from_numpy(latents))[0].numpy()
    assert np.abs(frames.astype(int) - to_pixels(pixels)).max() <= 1  # where rounding is a coin's edge
