"""Open-Sora-Plan's CausalVAE 4x8x8: latents to pixels, 17 latent frames at a time, which are 65 frames.

What is longer or larger is decoded as the published sampling scripts do it (``--enable_tiling``): windows share a
latent frame, and tiles of 256 pixels cut each of several windows, also where its frames would fit.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adacache_engines.bundle.latent_space import Windows
from adacache_engines.errors import CheckpointError
from adacache_export.frame_rules import FIRST_THEN_FOURS
from adacache_export.vaes.causal_vae.modules import CausalVaeConfig, ClipDecoder
from adacache_export.vaes.coding import ENCODER, Coding, window_decoder

NAME = "causal-vae"
CLASSES = ("CausalVAEModel",)
FRAMES = (FIRST_THEN_FOURS,)
CONFIG = CausalVaeConfig
STRETCH = 4  # frames of every latent frame but the first: what the model's latents are
WINDOWS = Windows(frames=65, latents=17, stretch=STRETCH, short=STRETCH - 1, shared=1)
TILE = 256  # pixels
OF_TRAINING = "loss."


def config_from(given: Mapping[str, Any], _shapes: Mapping[str, tuple[int, ...]]) -> CausalVaeConfig:
    """
    Raises:
        CheckpointError: lists all fields that are not supported.
    """
    config = CausalVaeConfig.from_json(given)
    if config.temporal_factor != STRETCH:
        raise CheckpointError(
            f"decoder_temporal_upsample makes {config.temporal_factor} frames of a latent frame: expected {STRETCH}"
        )
    return config


def tensors(given: Mapping[str, Tensor], _config: CausalVaeConfig) -> dict[str, Tensor]:
    """The decoder's."""
    return {name: tensor for name, tensor in given.items() if not name.startswith((*ENCODER, OF_TRAINING))}


def coding(config: CausalVaeConfig) -> Coding:
    """Without an encoder, which no model that takes this VAE generates from."""
    return Coding(
        channels=config.embed_dim,
        spatial_factor=config.spatial_factor,
        decoding=(window_decoder(lambda: ClipDecoder(config), config.embed_dim),),
        windows=WINDOWS,
        tile=TILE,
        tiles_windows=True,
    )
