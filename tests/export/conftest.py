"""Folders of small VAEs of every kind."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def vae_of(
    once: Callable[[str, Callable[[Path], object]], Path], vae_folder: Path, open_sora_vae_folder: Path
) -> Callable[[str], Path]:
    """Return a function from a kind's name in ``LATENTS`` to the folder of such a VAE, which must not be changed."""
    from tests.helpers.tiny_models.vae_bundle import write_causal_vae, write_temporal_decoder  # here: it imports torch

    def folder(kind: str) -> Path:
        if kind == "causal":
            return once("small-causal-vae", lambda folder: write_causal_vae(folder, levels=2))
        if kind == "temporal-decoder":
            return once("small-temporal-decoder", lambda folder: write_temporal_decoder(folder, levels=2))
        return vae_folder if kind == "stable-diffusion" else open_sora_vae_folder

    return folder
