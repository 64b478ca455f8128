"""diffusers' AutoencoderKLTemporalDecoder as a kind of VAE: it decodes 14 frames at a time.

It is Latte's other VAE, which Latte's sampling code prefers.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adacache_engines.bundle.latent_space import ChunkRule
from adacache_export.frame_rules import EACH_FRAME
from adacache_export.vaes.coding import ENCODER, Coding, chunk_decoder
from adacache_export.vaes.temporal_decoder.modules import ChunkDecoder, TemporalDecoderConfig

NAME = "temporal-decoder"
CLASSES = ("AutoencoderKLTemporalDecoder",)
FRAMES = (EACH_FRAME,)
CONFIG = TemporalDecoderConfig
CHUNK_FRAMES = 14  # frames that Latte decodes at once; 16 frames are chunks of 14 and 2


def config_from(given: Mapping[str, Any], _shapes: Mapping[str, tuple[int, ...]]) -> TemporalDecoderConfig:
    """Return the configuration that the content of a ``config.json`` describes; other fields are ignored.

    Raises:
        CheckpointError: lists all fields that are missing or not supported.
    """
    return TemporalDecoderConfig.from_json(given)


def tensors(given: Mapping[str, Tensor], _config: TemporalDecoderConfig) -> dict[str, Tensor]:
    """Return the decoder's tensors."""
    return {name: tensor for name, tensor in given.items() if not name.startswith(ENCODER)}


def coding(config: TemporalDecoderConfig) -> Coding:
    """Return the decoder and how it is fed; models with this VAE need no encoder."""
    return Coding(
        channels=config.latent_channels,
        spatial_factor=config.spatial_factor,
        decoding=(chunk_decoder(lambda: ChunkDecoder(config), config.latent_channels),),
        chunks=ChunkRule(frames=CHUNK_FRAMES, latents=CHUNK_FRAMES),
    )
