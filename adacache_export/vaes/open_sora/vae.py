"""The VAE of Open-Sora 1.2 (``OpenSoraVAE_V1_2``) as a kind of VAE: AutoencoderKL for images, and a causal VAE in time.

Each chunk of 17 frames, and the rest behind the last chunk, is coded by itself. Sizes follow from the tensors' shapes;
the folder's ``config.json`` does not state them.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn

from adacache_engines.bundle.latent_space import ChunkRule
from adacache_engines.bundle.tensors import TensorSpec
from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint.config import parsed_config
from adacache_export.frame_rules import CHUNKS_OF_17
from adacache_export.stages import Stage
from adacache_export.vaes.autoencoder_kl import vae as autoencoder_kl
from adacache_export.vaes.autoencoder_kl.modules import VaeConfig
from adacache_export.vaes.coding import PREFIX, TOLERANCE, Coding
from adacache_export.vaes.open_sora.temporal import STRETCH, TemporalConfig, TemporalDecoder, TemporalEncoder

Shapes = Mapping[str, tuple[int, ...]]

NAME = "open-sora-vae"
CLASSES = ("OpenSoraVAE_V1_2", "VideoAutoencoderPipeline")
FRAMES = (CHUNKS_OF_17,)
CHUNK_FRAMES = 17
IMAGES = 4  # images that are coded at once, as in the original
SPATIAL, TEMPORAL = "spatial_vae.module.", "temporal_vae."
FACTOR = 0.18215  # scale of the spatial latents: the original's own, not that of the spatial VAE's config.json
USUAL_CHANNELS = (128, 256, 512, 512)  # of each level of the spatial VAE, which is SDXL's


class _Groups(BaseModel):
    """The fields of one half in ``config.json`` that its tensors do not show."""

    model_config = ConfigDict(extra="ignore", strict=True)

    norm_num_groups: PositiveInt = 32
    num_groups: PositiveInt = 32


class _Json(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    vae_2d: _Groups = Field(default_factory=_Groups)
    vae_temporal: _Groups = Field(default_factory=_Groups)
    micro_frame_size: Literal[17] = 17


class OpenSoraVaeConfig(BaseModel):
    """The configurations of both halves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spatial: VaeConfig
    temporal: TemporalConfig


CONFIG = OpenSoraVaeConfig


def config_from(given: Mapping[str, Any], shapes: Shapes) -> OpenSoraVaeConfig:
    """Return the configuration, from ``config.json`` and the shapes of the folder's tensors.

    Raises:
        CheckpointError: groups do not divide channels, or chunks have another length than 17 frames.
    """
    json = parsed_config(_Json, {name: value for name, value in given.items() if value is not None})
    config = OpenSoraVaeConfig(
        spatial=_spatial(shapes, json.vae_2d.norm_num_groups),
        temporal=_temporal(shapes, json.vae_temporal.num_groups),
    )
    problems = [
        f"{place} {groups}: expected a divisor of the channels {', '.join(map(str, channels))}"
        for place, groups, channels in (
            ("vae_2d.norm_num_groups", config.spatial.norm_num_groups, config.spatial.block_out_channels),
            ("vae_temporal.num_groups", config.temporal.groups, config.temporal.channels),
        )
        if any(width % groups for width in channels)
    ]
    if 1 << sum(config.temporal.halving) != STRETCH:
        problems.append(f"{sum(config.temporal.halving)} levels of the temporal VAE halve the frames: expected 2")
    if problems:
        raise CheckpointError("; ".join(problems))
    return config


def coding(config: OpenSoraVaeConfig) -> Coding:
    """Return decoder and encoder, each of a temporal and a spatial stage, and how they are fed."""
    spatial, temporal = config.spatial, config.temporal
    inside = ("height", "width")
    coded = _spec("frames_of_latents", temporal.coded_channels, "pixel_frames", *inside)
    latents = _spec("latents", temporal.latent_channels, "frames", *inside)
    distribution = tuple(latents.model_copy(update={"name": name}) for name in ("mean", "deviation"))
    return Coding(
        channels=temporal.latent_channels,
        spatial_factor=spatial.spatial_factor,
        decoding=(
            _stage("decoder.temporal", lambda: TemporalDecoder(temporal), (latents,), (coded,)),
            autoencoder_kl.decoder_stage(spatial, "decoder.spatial", PREFIX + SPATIAL),
        ),
        encoding=(
            autoencoder_kl.encoder_stage(spatial, "vae_encoder.spatial", PREFIX + SPATIAL),
            _stage("vae_encoder.temporal", lambda: TemporalEncoder(temporal), (coded,), distribution),
        ),
        chunks=ChunkRule(frames=CHUNK_FRAMES, latents=-(-CHUNK_FRAMES // STRETCH), stretch=STRETCH, spare="first"),
        images=IMAGES,
    )


def tensors(given: Mapping[str, Tensor], _config: OpenSoraVaeConfig) -> dict[str, Tensor]:
    """Return all tensors, under the names that diffusers uses today."""
    return autoencoder_kl.today(given)


def _spatial(shapes: Shapes, groups: int) -> VaeConfig:
    blocks = f"{SPATIAL}encoder.down_blocks.{{}}.resnets.0.conv1.weight"
    layers = f"{SPATIAL}encoder.down_blocks.0.resnets.{{}}.conv1.weight"
    channels = _outputs(shapes, blocks) or USUAL_CHANNELS
    kind: Literal["UpDecoderBlock2D"] = "UpDecoderBlock2D"
    return VaeConfig(
        block_out_channels=channels,
        up_block_types=(kind,) * len(channels),
        latent_channels=_size(shapes, f"{SPATIAL}post_quant_conv.weight", 0, 4),
        layers_per_block=len(_outputs(shapes, layers)) or 2,
        norm_num_groups=groups,
        scaling_factor=FACTOR,
    )


def _temporal(shapes: Shapes, groups: int) -> TemporalConfig:
    """Return the sizes that the tensors show; those of missing tensors are as published, so that they are reported."""
    usual, levels = TemporalConfig(), f"{TEMPORAL}encoder.block_res_blocks."
    channels = _outputs(shapes, levels + "{}.0.conv1.conv.weight") or usual.channels
    between = [f"{TEMPORAL}encoder.conv_blocks.{index}.conv.weight" in shapes for index in range(len(channels) - 1)]
    return TemporalConfig(
        channels=channels,
        halving=tuple(between) if any(between) else usual.halving,
        blocks=len(_outputs(shapes, levels + "0.{}.conv1.conv.weight")) or usual.blocks,
        coded_channels=_size(shapes, f"{TEMPORAL}encoder.conv_in.conv.weight", 1, usual.coded_channels),
        latent_channels=_size(shapes, f"{TEMPORAL}post_quant_conv.conv.weight", 0, usual.latent_channels),
        groups=groups,
    )


def _outputs(shapes: Shapes, name: str) -> tuple[int, ...]:
    """Return the sizes of the first axis of all tensors of a numbered name, from 0 on."""
    numbered = itertools.takewhile(shapes.__contains__, (name.format(index) for index in itertools.count()))
    return tuple(shapes[tensor][0] for tensor in numbered if shapes[tensor])


def _size(shapes: Shapes, name: str, axis: int, usual: int) -> int:
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else usual


def _stage(
    name: str, make: Callable[[], nn.Module], inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> Stage:
    with torch.device("meta"):
        module = make().eval()
    return Stage(name, name, module, PREFIX, inputs, outputs, tolerance=TOLERANCE)


def _spec(name: str, *axes: int | str) -> TensorSpec:
    """Return the specification of a float32 tensor of one chunk."""
    return TensorSpec(name=name, dtype="float32", axes=(1, *axes))
