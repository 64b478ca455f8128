"""The VAE as a part of a bundle."""

from pathlib import Path

from adacache_engines.bundle.latent_space import VaePrecision
from adacache_engines.bundle.manifest import LatentSpace
from adacache_export.parts.part import Part, write_part
from adacache_export.phases import Progress, running_total
from adacache_export.vaes.registry import Vae, open_vae, recognise_vae
from adacache_export.verification.sizes import decoder_sizes, vae_encoder_sizes


def open_decoder(folder: Path, latent: LatentSpace, precision: VaePrecision, progress: Progress) -> Vae:
    """Open the VAE in a folder for a model.

    Args:
        folder: folder with ``config.json`` and weights.
        latent: the model's latent space.
        precision: precision of the VAE in the bundle.
        progress: object that is told of every phase.

    Raises:
        CheckpointError: the folder holds no complete VAE of a known kind.
        InputError: the VAE decodes other latents than the model makes.
    """
    recognise_vae(folder, latent)
    size = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    return open_vae(folder, latent, precision, running_total(progress.phase("checking the VAE", size)))


def add_decoder(bundle: Path, vae: Vae, latent: LatentSpace, progress: Progress) -> tuple[Part, LatentSpace]:
    """Write a VAE into a bundle; return the part, and the latent space of the manifest with the VAE in it."""
    fed, coding = vae.added_to(latent, {}), vae.coding
    stages = [(coding.decoders, decoder_sizes(fed)), (coding.encoders, vae_encoder_sizes(fed))]
    tensors, used = vae.checkpoint.tensors, [one for one in stages if one[0]]
    part = write_part(bundle, "vae", used, tensors, vae.dtypes(), vae.precision, progress)
    return part, vae.added_to(latent, part.graphs)
