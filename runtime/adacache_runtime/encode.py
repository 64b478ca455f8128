"""Pixels to latents, for generations that start from an image or a clip."""

import numpy as np
from numpy.typing import NDArray

from adacache_engines.base import Backend
from adacache_engines.bundle import Bundle
from adacache_engines.errors import InputError
from adacache_engines.manifest import Manifest


def check_encoder(manifest: Manifest) -> None:
    """
    Raises:
        InputError: the bundle has nothing that turns pixels into latents.
    """
    if manifest.latent.decoder != "pixels":
        raise InputError(
            "this bundle has no encoder that turns images and clips into latents: encode them with the model's own "
            "code, and give them with their mask as --latents FILE.npz"
        )


def encode(bundle: Bundle, backend: Backend, pixels: NDArray[np.float32], seed: int) -> NDArray[np.float32]:  # noqa: ARG001 - of an encoder
    """
    Args:
        bundle: with an encoder, or of a model of pixels, which needs none.
        backend: that runs it.
        pixels: (3, frames, height, width), -1 to 1.
        seed: of what an encoder draws.

    Returns:
        (channels, latent frames, latent height, latent width).

    Raises:
        InputError: the bundle has no encoder.
    """
    check_encoder(bundle.manifest)
    return pixels
