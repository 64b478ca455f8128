"""A diffusers folder with Stable Diffusion's AutoencoderKL as a stage: latents to pixels, frame by frame."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from torch import Tensor, nn

from adacache_engines.errors import CheckpointError, InputError, require
from adacache_engines.manifest import LatentSpace
from adacache_engines.tensors import TensorSpec
from adacache_export.checkpoint import Checkpoint, check, open_checkpoint
from adacache_export.checkpoint.formats import read_json
from adacache_export.checkpoint.layout import CONFIG
from adacache_export.stages import Stage

KIND = "AutoencoderKL"
PREFIX = "vae."  # keeps the decoder's weights apart from the model's in one weights file
OTHER_HALF = ("encoder.", "quant_conv.")
ATTENTION = re.compile(r"(.+\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # older diffusers' names
ATTENTION_WEIGHT = re.compile(r".+\.attentions\.\d+\.(to_q|to_k|to_v|to_out\.0)\.weight")
# 1/26 of a grey level. Float32 sums in another order through some forty layers in a row: 9e-6 with random weights
TOLERANCE = 3e-4

OWN_CODE = "export without --vae, and decode the latents that adacache-run writes with the model's own code"
VIDEO_VAES: Mapping[str, str] = {  # those that published video models come with -> what to do
    "AutoencoderKLTemporalDecoder": "for Latte, pass the folder vae/ instead of vae_temporal_decoder/",
    "OpenSoraVAE_V1_2": OWN_CODE,
    "VideoAutoencoderPipeline": OWN_CODE,
    "CausalVAEModel": OWN_CODE,
}


class VaeConfig(BaseModel):
    """The fields of an AutoencoderKL's ``config.json`` that change the decoder, under their published names and with
    diffusers' defaults.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    block_out_channels: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]
    up_block_types: Annotated[tuple[Literal["UpDecoderBlock2D"], ...], Field(strict=False)]
    latent_channels: PositiveInt = 4
    out_channels: Literal[3] = 3
    layers_per_block: PositiveInt = 1
    norm_num_groups: PositiveInt = 32
    act_fn: Literal["silu", "swish"] = "silu"
    mid_block_add_attention: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: PositiveFloat = 0.18215
    shift_factor: float | None = None
    latents_mean: None = None  # one a channel, of later models that shift and scale by these instead
    latents_std: None = None

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "VaeConfig":
        """From the content of ``config.json``; other fields are ignored.

        Raises:
            CheckpointError: it is of another class, or lists all fields that are missing or not supported.
        """
        kind = _kind(config)
        if kind in VIDEO_VAES:
            raise CheckpointError(f"it describes {kind}, which cannot be decoded yet: {VIDEO_VAES[kind]}")
        if kind != KIND:
            raise CheckpointError(
                f"it describes {kind or 'no class'}; expected {KIND}: pass the folder vae/ of the model"
            )
        try:
            settled = cls.model_validate(config)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
            raise CheckpointError("; ".join(problems)) from error
        if len(settled.up_block_types) != len(settled.block_out_channels):
            raise CheckpointError("up_block_types: expected as many as block_out_channels")
        if any(channels % settled.norm_num_groups for channels in settled.block_out_channels):
            raise CheckpointError("block_out_channels: expected multiples of norm_num_groups")
        return settled

    @property
    def spatial_factor(self) -> int:
        """Pixels of a latent row or column: every block but the last doubles them."""
        return 1 << (len(self.block_out_channels) - 1)


@dataclass(frozen=True, eq=False)
class Vae:
    """What export needs of a VAE.

    Attributes:
        stage: ``decoder``: ``latents`` (images, channels, height, width) as the model has them to ``pixels`` (images,
            3, pixel_height, pixel_width), about -1 to 1 and not cut off, both float32. Its module is on the meta
            device. To be exported in float32 whatever the model's precision: its activations overflow float16.
        checkpoint: the weights under the stage's keys, mapped from their files.
        config: the VAE's configuration.
    """

    stage: Stage
    checkpoint: Checkpoint
    config: VaeConfig


class FrameDecoder(nn.Module):
    """The half of diffusers' AutoencoderKL that decodes, from latents as a diffusion model has them.

    Source: Rombach et al., arXiv 2112.10752, 4.3.2 (rescaled latents); the shift: Stable Diffusion 3's.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        encoder = ("DownEncoderBlock2D",) * len(config.block_out_channels)
        whole = require("diffusers", "export").AutoencoderKL(**config.model_dump(), down_block_types=encoder)
        self.post_quant_conv = whole.post_quant_conv if config.use_post_quant_conv else nn.Identity()
        self.decoder = whole.decoder
        self.scale, self.shift = config.scaling_factor, config.shift_factor or 0.0

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3, factor * H, factor * W)."""
        pixels: Tensor = self.decoder(self.post_quant_conv(latents / self.scale + self.shift))
        return pixels


def check_latents(folder: Path, latent: LatentSpace) -> None:
    """
    Raises:
        InputError: no AutoencoderKL belongs to a model of such latents.
    """
    if latent.decoder == "pixels":
        raise InputError(f"--vae {folder}: this model makes pixels itself and needs no decoder; leave --vae out")
    if not latent.frame_by_frame():
        raise InputError(
            f"--vae {folder}: a latent frame of this model stands for several frames, and an {KIND} decodes each by "
            f"itself; the model's own VAE is not supported yet: {OWN_CODE}"
        )


def open_vae(folder: Path, latent: LatentSpace, progress: Callable[[int], None] | None = None) -> Vae:
    """Opens the AutoencoderKL of a folder with ``config.json`` and weights in any layout that
    :func:`adacache_export.checkpoint.open_checkpoint` knows. Reads every value of the decoder once, to find NaN.

    Args:
        folder: the folder.
        latent: of the model that it is to decode for.
        progress: called with the bytes of weights checked so far.

    Raises:
        CheckpointError: something is missing, damaged, of another kind of VAE, or does not fit; names the folder.
        InputError: the model's latents are not what this VAE decodes.
        MissingDependencyError: diffusers is not installed.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} has no {CONFIG}; expected a diffusers folder with that and weights of {KIND}")
    try:
        config = VaeConfig.from_json(read_json(folder / CONFIG))
    except CheckpointError as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be used: {error}") from error
    made, wanted = (config.latent_channels, config.spatial_factor), (latent.channels, latent.spatial_factor)
    if made != wanted:
        raise InputError(
            f"--vae {folder} decodes latents of {made[0]} channels, {made[1]} pixels a row; the model makes "
            f"{wanted[0]} channels, {wanted[1]} pixels a row: pass the VAE that the model was trained with"
        )
    stage = decoder_stage(config)
    opened = open_checkpoint(folder)
    checkpoint = replace(opened, tensors=_decoder_tensors(opened.tensors))
    parameters = dict(stage.module.named_parameters())
    check(checkpoint, {key: tuple(parameters[name].shape) for name, key in stage.keys().items()}, progress=progress)
    return Vae(stage, checkpoint, config)


def decoder_stage(config: VaeConfig) -> Stage:
    with torch.device("meta"):
        module = FrameDecoder(config).eval()
    latents = TensorSpec(name="latents", dtype="float32", axes=("images", config.latent_channels, "height", "width"))
    pixels = TensorSpec(
        name="pixels", dtype="float32", axes=("images", config.out_channels, "pixel_height", "pixel_width")
    )
    return Stage("decoder", "decoder", module, PREFIX, (latents,), (pixels,), tolerance=TOLERANCE)


def _kind(config: Mapping[str, Any]) -> str:
    """The class that a ``config.json`` is of: diffusers' word for it, or transformers'."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return str(config.get("_class_name") or first or config.get("model_type") or "")


def _decoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's tensors by key of the stage: old names of attention are made today's, and its weights that were
    saved as convolutions of one pixel are made matrices.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(OTHER_HALF):
            continue
        old = ATTENTION.fullmatch(name)
        today = f"{old[1]}.{RENAMED[old[2]]}.{old[3]}" if old else name
        if ATTENTION_WEIGHT.fullmatch(today) and tensor.shape[2:] == (1, 1):
            tensor = tensor.flatten(1)
        found[PREFIX + today] = tensor
    return found
