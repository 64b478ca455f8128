"""Bundles of a VAE alone: the graphs are exported, the rest of the manifest is the fake model's."""

import functools
import logging
from dataclasses import replace
from pathlib import Path

import fake_model
from torch import Tensor

from adacache_engines.bundle import MANIFEST, Bundle, dump_manifest
from adacache_engines.manifest import LatentSpace, Manifest
from adacache_engines.ort import OrtBackend
from adacache_export.bundle_writer import file_entries
from adacache_export.convert import with_vae
from adacache_export.graphs import export_graphs
from adacache_export.phases import Progress
from adacache_export.vaes import Vae
from adacache_export.weights_file import write_weights

OPEN_SORA_LATENT = LatentSpace(channels=4, patch=(1, 2, 2), spatial_factor=8, frames="open-sora-vae", decoder="none")


def write_vae_bundle(folder: Path, vae: Vae, latent: LatentSpace) -> Manifest:
    """Written as ``convert`` does it."""
    weights = folder / "onnx" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    tensors = vae.checkpoint.tensors

    def read(key: str) -> Tensor:
        return tensors[key].float()

    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    locations = write_weights(weights, shapes, dict.fromkeys(tensors, "float32"), read)
    make = functools.partial(
        export_graphs,
        weights=weights,
        locations=locations,
        read=read,
        backend=OrtBackend(folder),
        progress=Progress(),
    )
    logging.disable()
    try:
        made = with_vae(latent, vae, make)
    finally:
        logging.disable(logging.NOTSET)
    entries = file_entries(folder, lambda _: None)
    manifest = fake_model.manifest(entries).model_copy(update={"latent": made, "family": "open-sora-1.2"})
    (folder / MANIFEST).write_text(dump_manifest(manifest))
    return manifest


def alone(bundle: Bundle, **changes: object) -> Bundle:
    """With another latent space."""
    latent = bundle.manifest.latent.model_copy(update=changes)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"latent": latent}))
