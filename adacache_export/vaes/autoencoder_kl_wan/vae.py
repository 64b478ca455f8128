"""diffusers' AutoencoderKLWan as a kind of VAE: a latent frame at a time, with features carried from each to the next.

Wan 2.1's VAE and those of 2.2's 14B models have 16 channels and 8 x 8 pixels; that of 2.2's 5B model has 48 channels,
16 x 16 pixels, residual shortcuts around its blocks, and patches of 2 x 2 pixels. Four frames are a latent frame in
both, and the first frame is one by itself.

Tiles are blended pixel by pixel, as in diffusers' ``tiled_decode``. Where pixels are patches, diffusers blends patch by
patch instead, so that there the weights within an overlap differ by up to a pixel's step.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adacache_engines.bundle.latent_space import ChunkRule
from adacache_engines.bundle.tensors import TensorSpec
from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint.config import parsed_config
from adacache_export.frame_rules import FIRST_ALONE_THEN_FOURS
from adacache_export.stages import OUT, Stage
from adacache_export.vaes.autoencoder_kl_wan.modules import (
    PIXEL_CHANNELS,
    STRETCH,
    ChunkDecoder,
    ChunkEncoder,
    Shape,
    WanVaeConfig,
    autoencoder,
    decoder_features,
    encoder_features,
)
from adacache_export.vaes.coding import PREFIX, TOLERANCE, Coding

NAME = "autoencoder-kl-wan"
CLASSES = ("AutoencoderKLWan",)
FRAMES = (FIRST_ALONE_THEN_FOURS,)
CONFIG = WanVaeConfig


def config_from(given: Mapping[str, Any], _shapes: Mapping[str, tuple[int, ...]]) -> WanVaeConfig:
    """Return the configuration that the content of a ``config.json`` describes; other fields are ignored.

    Raises:
        CheckpointError: lists all fields that are missing, not supported, or do not fit together.
    """
    config = parsed_config(WanVaeConfig, given)
    problems = [
        f"{name}: expected {config.z_dim} numbers, as many as z_dim"
        for name in ("latents_mean", "latents_std")
        if len(getattr(config, name)) != config.z_dim
    ]
    if len(config.temperal_downsample) != len(config.dim_mult) - 1:
        problems.append("temperal_downsample: expected an entry for each of dim_mult but the last")
    elif 1 << sum(config.temperal_downsample) != STRETCH:
        made = 1 << sum(config.temperal_downsample)
        problems.append(f"temperal_downsample makes {made} frames of a latent frame: expected {STRETCH}")
    problems += [
        f"{name}: expected {PIXEL_CHANNELS * config.patch**2}, {PIXEL_CHANNELS} for each pixel of a patch"
        for name in ("in_channels", "out_channels")
        if getattr(config, name) != PIXEL_CHANNELS * config.patch**2
    ]
    if not problems:
        try:
            with torch.device("meta"):
                autoencoder(config)
        except (ValueError, AssertionError) as error:
            problems.append(f"base_dim and dim_mult do not fit together: {error}")
    if problems:
        raise CheckpointError("; ".join(problems))
    return config


def tensors(given: Mapping[str, Tensor], _config: WanVaeConfig) -> dict[str, Tensor]:
    """Return all tensors, under their own names."""
    return dict(given)


def coding(config: WanVaeConfig) -> Coding:
    """Return decoder and encoder, each for a video's first chunk and for those that follow, and how they are fed."""
    decoder, encoder = decoder_features(config), encoder_features(config)

    def decoding(name: str, first: bool) -> Stage:
        pixels = _pixels(1 if first else STRETCH)
        return _stage(
            name, lambda: ChunkDecoder(config, decoder, first), _latents("latents", config), pixels, decoder, first
        )

    def encoding(name: str, first: bool) -> Stage:
        pixels = _pixels(1 if first else STRETCH)
        return _stage(name, lambda: ChunkEncoder(config, encoder), pixels, _latents("mean", config), encoder, first)

    return Coding(
        channels=config.z_dim,
        spatial_factor=config.spatial_factor,
        decoding=(decoding("decoder", first=False),),
        encoding=(encoding("vae_encoder", first=False),),
        first_decoding=(decoding("decoder.first", first=True),),
        first_encoding=(encoding("vae_encoder.first", first=True),),
        chunks=ChunkRule(frames=STRETCH, latents=1, stretch=STRETCH, first_alone=True),
    )


def _stage(
    name: str,
    make: Callable[[], nn.Module],
    given: TensorSpec,
    made: TensorSpec,
    features: tuple[Shape, ...],
    first: bool,
) -> Stage:
    """Return a stage that codes a chunk: ``given`` and carried features become ``made`` and the next features.

    Args:
        name: name of the stage.
        make: function that makes the module.
        given, made: the tensors that are not carried.
        features: shapes of the carried features.
        first: whether the chunk is a video's first one, which takes no features.
    """
    carried = [_carried(f"carried_{index:02d}", shape) for index, shape in enumerate(features)]
    handed_on = [spec.model_copy(update={"name": spec.name + OUT}) for spec in carried]
    with torch.device("meta"):
        module = make().eval()
    return Stage(
        name,
        name,
        module,
        PREFIX,
        (given,) if first else (given, *carried),
        (made, *handed_on),
        tolerance=TOLERANCE,
        carried={spec.name + OUT: spec.name for spec in carried},
    )


def _carried(name: str, shape: Shape) -> TensorSpec:
    channels, frames, rows = shape
    inside = ("height", "width") if rows == 1 else (f"height_{rows}", f"width_{rows}")
    return TensorSpec(name=name, dtype="float32", axes=(1, channels, frames, *inside))


def _latents(name: str, config: WanVaeConfig) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", axes=(1, config.z_dim, 1, "height", "width"))


def _pixels(frames: int) -> TensorSpec:
    axes = (1, PIXEL_CHANNELS, frames, "pixel_height", "pixel_width")
    return TensorSpec(name="pixels", dtype="float32", axes=axes)
