"""Open-Sora-Plan's CausalVAE 4x8x8 as a kind of VAE: it decodes 17 latent frames at a time, which are 65 frames.

Longer videos and larger frames are decoded as the published sampling scripts do it (``--enable_tiling``): consecutive
chunks share a latent frame, and each of several chunks is cut into tiles of 256 pixels, even where a tile would hold
its frames.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adacache_engines.bundle.latent_space import ChunkRule
from adacache_engines.errors import CheckpointError
from adacache_export.frame_rules import FIRST_THEN_FOURS
from adacache_export.vaes.causal_vae.modules import CausalVaeConfig, ClipDecoder
from adacache_export.vaes.coding import ENCODER, Coding, chunk_decoder

NAME = "causal-vae"
CLASSES = ("CausalVAEModel",)
FRAMES = (FIRST_THEN_FOURS,)
CONFIG = CausalVaeConfig
STRETCH = 4  # frames of every latent frame but the first
CHUNKS = ChunkRule(frames=65, latents=17, stretch=STRETCH, short=STRETCH - 1, shared=1)
TILE = 256  # pixels, side of a tile
TRAINING = "loss."  # begins the names of tensors that only training needs


def config_from(given: Mapping[str, Any], _shapes: Mapping[str, tuple[int, ...]]) -> CausalVaeConfig:
    """Return the configuration that the content of a ``config.json`` describes; other fields are ignored.

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
    """Return the decoder's tensors."""
    return {name: tensor for name, tensor in given.items() if not name.startswith((*ENCODER, TRAINING))}


def coding(config: CausalVaeConfig) -> Coding:
    """Return the decoder and how it is fed; models with this VAE need no encoder."""
    return Coding(
        channels=config.embed_dim,
        spatial_factor=config.spatial_factor,
        decoding=(chunk_decoder(lambda: ClipDecoder(config), config.embed_dim),),
        chunks=CHUNKS,
        tile=TILE,
        tiles_chunks=True,
    )
