"""Folders of Open-Sora's VAE: the published tensors, sizes that follow from them, and odd configurations."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adacache_export.vaes.open_sora.temporal import TemporalConfig, TemporalDecoder, TemporalEncoder
from adacache_export.vaes.registry import open_vae
from tests.helpers.originals.reference import OPEN_SORA
from tests.helpers.tiny_models.vae_bundle import OPEN_SORA_LATENT, set_config

WEIGHTS = "model.safetensors"
FACTOR = 0.18215


@pytest.fixture
def folder(open_sora_vae_folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(open_sora_vae_folder, tmp_path / "vae"))


def test_the_published_tensors() -> None:
    """The original class has the same names, shapes and number of parameters."""
    lines = (OPEN_SORA / "vae_temporal_keys.txt").read_text().splitlines()
    wanted = dict(line.split(" ", 1) for line in lines[:-1])
    with torch.device("meta"):
        modules = TemporalEncoder(TemporalConfig()), TemporalDecoder(TemporalConfig())
    tensors = {name: value for module in modules for name, value in module.temporal_vae.state_dict().items()}
    assert {name: str(tuple(value.shape)) for name, value in tensors.items()} == wanted
    assert sum(value.numel() for value in tensors.values()) == int(lines[-1].split()[1])


def test_sizes_follow_from_the_tensors(open_sora_vae_folder: Path) -> None:
    vae = open_vae(open_sora_vae_folder, OPEN_SORA_LATENT)
    config = vae.config.model_dump()
    assert config["temporal"] == {
        "channels": (4, 8, 8, 16),
        "halving": (False, True, True),
        "blocks": 1,
        "coded_channels": 4,
        "latent_channels": 4,
        "groups": 2,
    }
    assert config["spatial"]["block_out_channels"] == (8, 8)
    assert config["spatial"]["layers_per_block"] == 1
    assert config["spatial"]["scaling_factor"] == FACTOR
    stored = load_file(open_sora_vae_folder / WEIGHTS)
    assert {key.removeprefix("vae.") for key in vae.checkpoint.tensors} == set(stored)
    assert type(vae.config).model_validate(json.loads(vae.config.model_dump_json())) == vae.config


@pytest.mark.parametrize(
    "named",
    [
        {"architectures": ["OpenSoraVAE_V1_2"]},
        {"architectures": None, "model_type": "OpenSoraVAE_V1_2"},
        {"micro_frame_size": None},
    ],
)
def test_other_configs(named: dict[str, object], folder: Path) -> None:
    set_config(folder, **named)
    open_vae(folder, OPEN_SORA_LATENT)
