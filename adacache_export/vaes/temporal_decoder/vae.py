"""diffusers' AutoencoderKLTemporalDecoder: latents to pixels, 14 frames at a time. Latte's other VAE, which its
sampling code prefers.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adacache_engines.bundle.latent_space import Windows
from adacache_export.frame_rules import EACH_FRAME
from adacache_export.vaes.coding import ENCODER, Coding, window_decoder
from adacache_export.vaes.temporal_decoder.modules import TemporalDecoderConfig, WindowDecoder

NAME = "temporal-decoder"
CLASSES = ("AutoencoderKLTemporalDecoder",)
FRAMES = (EACH_FRAME,)
CONFIG = TemporalDecoderConfig
WINDOW_FRAMES = 14  # that Latte decodes at a time, each window by itself: 16 frames are 14 and 2


def config_from(given: Mapping[str, Any], _shapes: Mapping[str, tuple[int, ...]]) -> TemporalDecoderConfig:
    """
    Raises:
        CheckpointError: lists all fields that are missing or not supported.
    """
    return TemporalDecoderConfig.from_json(given)


def tensors(given: Mapping[str, Tensor], _config: TemporalDecoderConfig) -> dict[str, Tensor]:
    """The decoder's."""
    return {name: tensor for name, tensor in given.items() if not name.startswith(ENCODER)}


def coding(config: TemporalDecoderConfig) -> Coding:
    """Without an encoder, which no model that takes this VAE generates from."""
    return Coding(
        channels=config.latent_channels,
        spatial_factor=config.spatial_factor,
        decoding=(window_decoder(lambda: WindowDecoder(config), config.latent_channels),),
        windows=Windows(frames=WINDOW_FRAMES, latents=WINDOW_FRAMES),
    )
