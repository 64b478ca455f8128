"""diffusers' AutoencoderKLTemporalDecoder: module, folder, and the engine that decodes chunks of any length."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder

from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.bundle.latent_space import ChunkRule
from adacache_engines.errors import CheckpointError
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.vaes.coding import ENCODER
from adacache_export.vaes.registry import open_vae
from adacache_export.vaes.temporal_decoder.modules import ChunkDecoder, TemporalDecoderConfig
from adacache_runtime.commands.run import main as run_command
from adacache_runtime.media.video import to_pixels
from adacache_runtime.samplers.update import Floats
from adacache_runtime.vae.tiles import by_tiles
from tests.helpers.originals.reference import arrays, worst
from tests.helpers.tiny_models.exporting import DATA, convert_quietly
from tests.helpers.tiny_models.vae_bundle import (
    LATTE_LATENT,
    build_vae_plans,
    decoded_at_once,
    stage_of,
    write_temporal_decoder,
    write_vae_bundle,
)

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
HALVED = LATTE_LATENT.model_copy(update={"spatial_factor": 2})
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a VAE of two levels, because every node costs time to export; it must not be changed."""
    folder = tmp_path_factory.mktemp("published") / "vae_temporal_decoder"
    write_temporal_decoder(folder, levels=2)
    return folder


@pytest.fixture(scope="module")
def original(folder: Path) -> AutoencoderKLTemporalDecoder:
    return AutoencoderKLTemporalDecoder.from_pretrained(folder).eval()


def latents_of(frames: int, height: int = 3, width: int = 5) -> torch.Tensor:
    """(C, frames, H, W)."""
    return torch.randn((4, frames, height, width), generator=torch.Generator().manual_seed(frames))


@torch.no_grad()
def decoded(vae: AutoencoderKLTemporalDecoder, latents: torch.Tensor) -> Floats:
    """A chunk as Latte's sampling code decodes it: (3, frames, ...)."""
    images = latents.transpose(0, 1) / 0.18215
    return vae.decode(images, num_frames=len(images)).sample.transpose(0, 1).numpy()


@pytest.mark.parametrize("frames", [14, 2, 1])
def test_module_equals_diffusers(frames: int, folder: Path, original: AutoencoderKLTemporalDecoder) -> None:
    latents = latents_of(frames)
    pixels = stage_of(open_vae(folder, HALVED))(latents[None])
    assert pixels.shape == (1, 3, frames, 6, 10)
    assert worst(pixels[0].numpy(), decoded(original, latents)) < 1e-6


def test_frames_of_a_chunk_are_mixed(original: AutoencoderKLTemporalDecoder) -> None:
    two = latents_of(2)
    assert np.abs(decoded(original, two)[:, :1] - decoded(original, two[:, :1])).max() > 0.01


def test_published_keys() -> None:
    config = TemporalDecoderConfig.from_json(PUBLISHED)
    assert config.spatial_factor == 8
    with torch.device("meta"):
        module = ChunkDecoder(config)
        whole = AutoencoderKLTemporalDecoder(
            **{name: value for name, value in PUBLISHED.items() if not name.startswith("_")},
            down_block_types=("DownEncoderBlock2D",) * 4,
        )
    assert set(module.state_dict()) == {name for name in whole.state_dict() if not name.startswith(ENCODER)}
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


# the folder


def test_how_it_is_fed(folder: Path) -> None:
    vae = open_vae(folder, HALVED)
    (stage,) = vae.coding.decoding
    assert set(vae.checkpoint.tensors) == set(stage.keys().values())
    assert type(vae.config).model_validate(json.loads(vae.config.model_dump_json())) == vae.config
    fed = vae.added_to(HALVED, {})
    assert (fed.decoder, fed.chunks, fed.tile) == ("temporal-decoder", ChunkRule(frames=14, latents=14), None)


# the engine


@pytest.fixture(scope="module")
def bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    output = tmp_path_factory.mktemp("exported") / "bundle"
    write_vae_bundle(output, folder, HALVED)
    return open_bundle(output)


@pytest.mark.slow
@pytest.mark.parametrize("tile", [None, 16])
def test_engine_decodes_videos_of_any_length(
    tile: int | None, bundle: Bundle, original: AutoencoderKLTemporalDecoder
) -> None:
    """Latte's 16 frames are chunks of 14 and 2."""
    backend = OrtBackend(bundle.folder)

    def run(latents: Floats) -> Floats:
        return decoded(original, torch.from_numpy(np.ascontiguousarray(latents)))

    for frames, height, width in ((16, 3, 5), (1, 2, 3), (30, 5, 2), (16, 9, 11)):
        given = latents_of(frames, height, width).numpy()
        side = tile // 2 if tile and max(height, width) > tile // 2 else None
        chunks = [given[:, start : start + 14] for start in range(0, frames, 14)]
        wanted = np.concatenate([by_tiles(run, chunk, side, given=2) for chunk in chunks], axis=1)
        assert worst(decoded_at_once(bundle, backend, given, frames=frames, tile=tile), wanted) < TOLERANCE


@pytest.mark.slow
def test_plans(bundle: Bundle, tmp_path: Path) -> None:
    assert "decoder" in build_vae_plans(bundle.folder, tmp_path, "8x8..16x16:1f..8f")


@pytest.mark.slow
def test_a_run_ends_in_a_video(tmp_path: Path) -> None:
    write_temporal_decoder(tmp_path / "vae", levels=4)
    convert_quietly(DATA / "latte", tmp_path / "bundle", vae=tmp_path / "vae")
    given = arrays(DATA / "latte" / "inputs.npz")
    np.savez(tmp_path / "text.npz", embeddings=given["cfg_text"], negative=given["cfg_neg"])
    command = [str(tmp_path / "bundle"), "--text-embeddings", str(tmp_path / "text.npz"), "--steps", "2"]
    command += ["--save-latents", str(tmp_path / "latents.npz"), "-o", str(tmp_path / "clip.npz")]
    assert run_command(command) == 0
    frames, latents = arrays(tmp_path / "clip.npz")["frames"], arrays(tmp_path / "latents.npz")["latents"]
    vae = AutoencoderKLTemporalDecoder.from_pretrained(tmp_path / "vae").eval()
    wanted = [to_pixels(decoded(vae, chunk)) for chunk in torch.from_numpy(latents)[0].split(14, dim=1)]
    assert np.abs(frames.astype(int) - np.concatenate(wanted)).max() <= 1  # where rounding is a coin's edge
