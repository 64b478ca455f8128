"""Modules of diffusers' AutoencoderKLWan that code one chunk of a video, with the carried features made explicit.

The VAE is causal: each convolution over time sees the two frames before its own, which diffusers keeps in a cache from
chunk to chunk ("feature cache", Wan 2.1's technical report, arXiv 2503.20314, 4.1). Here the entries of that cache are
inputs and outputs. A video's first frame is a chunk and a latent frame by itself; four frames, or one latent frame,
make each chunk that follows. What a chunk becomes does not depend on how long the video is.

Axes: C latent channels, H x W latent rows and columns, P = spatial_factor.
"""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from adacache_engines.errors import require

IMPLEMENTATION = "diffusers.models.autoencoders.autoencoder_kl_wan"
PIXEL_CHANNELS = 3
STRETCH = 4  # frames of every latent frame but the first

Shape = tuple[int, int, int]  # channels, frames, rows for each latent row


class WanVaeConfig(BaseModel):
    """The fields of an AutoencoderKLWan's ``config.json`` that change the model, under their published names.

    Defaults are those of diffusers.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    base_dim: PositiveInt = 96
    decoder_base_dim: PositiveInt | None = None
    z_dim: PositiveInt = 16
    dim_mult: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)] = (1, 2, 4, 4)
    num_res_blocks: PositiveInt = 2
    attn_scales: Annotated[tuple[float, ...], Field(strict=False, max_length=0)] = ()
    temperal_downsample: Annotated[tuple[bool, ...], Field(strict=False)] = (False, True, True)
    latents_mean: Annotated[tuple[FiniteFloat, ...], Field(strict=False)]
    latents_std: Annotated[tuple[PositiveFloat, ...], Field(strict=False)]
    is_residual: bool = False
    in_channels: PositiveInt = 3
    out_channels: PositiveInt = 3
    patch_size: PositiveInt | None = None

    @property
    def patch(self) -> int:
        """Number of pixels of a row that the encoder puts into channels, and the decoder takes from there."""
        return self.patch_size or 1

    @property
    def spatial_factor(self) -> int:
        """Number of pixels of a latent row or column: every block but the last doubles them."""
        return self.patch << (len(self.dim_mult) - 1)


class ChunkDecoder(nn.Module):
    """The decoder of diffusers' AutoencoderKLWan, from latents that are normalised as a diffusion model makes them.

    Args:
        config: configuration of the VAE.
        carried: shapes of the carried features, from :func:`decoder_features`.
        first: whether the chunk is a video's first one.
    """

    def __init__(self, config: WanVaeConfig, carried: tuple[Shape, ...], first: bool) -> None:
        super().__init__()
        whole = autoencoder(config)
        self.post_quant_conv, self.decoder = whole.post_quant_conv, whole.decoder
        self.config, self.carried, self.first = config, carried, first

    def forward(self, latents: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        """Map a latent frame (1, C, 1, H, W) to pixels (1, 3, 4, P H, P W), or one frame of them in the first chunk.

        Pixels are about -1 to 1 and not clipped. The features for the next chunk follow.
        """
        mean, deviation = (latents.new_tensor(some).view(-1, 1, 1, 1) for some in _moments(self.config))
        hidden = self.post_quant_conv(latents * deviation + mean)
        pixels, features = through(self.decoder, hidden, carried, self.carried, first_chunk=self.first)
        return (require(IMPLEMENTATION, "export").unpatchify(pixels, self.config.patch), *features)


class ChunkEncoder(nn.Module):
    """The encoder of diffusers' AutoencoderKLWan, to the most likely latents, which :class:`ChunkDecoder` takes.

    They are the mean of the distribution that the VAE gives; models that start from images take no sample of it.

    Args:
        config: configuration of the VAE.
        carried: shapes of the carried features, from :func:`encoder_features`.
    """

    def __init__(self, config: WanVaeConfig, carried: tuple[Shape, ...]) -> None:
        super().__init__()
        whole = autoencoder(config)
        self.encoder, self.quant_conv = whole.encoder, whole.quant_conv
        self.config, self.carried = config, carried

    def forward(self, pixels: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        """Map pixels (1, 3, 4, P H, P W), or one frame of them in the first chunk, to a latent frame (1, C, 1, H, W).

        Rows and columns beyond a whole number of latent ones are ignored. The features for the next chunk follow.
        """
        factor = self.config.spatial_factor
        rows, columns = (size // factor * factor for size in pixels.shape[-2:])
        patches = require(IMPLEMENTATION, "export").patchify(pixels[..., :rows, :columns], self.config.patch)
        hidden, features = through(self.encoder, patches, carried, self.carried)
        moments = self.quant_conv(hidden).float()
        mean, deviation = (moments.new_tensor(some).view(-1, 1, 1, 1) for some in _moments(self.config))
        return ((moments[:, : self.config.z_dim] - mean) / deviation, *features)


def autoencoder(config: WanVaeConfig) -> Any:
    """Return diffusers' module for a configuration.

    Raises:
        ValueError: channels of a residual VAE do not fit together.
        MissingDependencyError: diffusers is not installed.
    """
    fields = config.model_dump()
    lists = {name: list(value) for name, value in fields.items() if isinstance(value, tuple)}
    whole = require("diffusers", "export").AutoencoderKLWan(**fields | lists)
    implementation = require(IMPLEMENTATION, "export")
    # where convolutions are narrower, norms, attention and what is joined with carried features stay float32
    for module in whole.modules():
        if isinstance(module, (implementation.WanRMS_norm, implementation.WanResample, implementation.WanDecoder3d)):
            module.register_forward_pre_hook(lambda _module, given: tuple(value.float() for value in given))
        if isinstance(module, implementation.WanResample):
            module.resample.register_forward_hook(_widened)
        if isinstance(module, implementation.WanAttentionBlock):
            module.to_qkv.register_forward_hook(_widened)
    return whole


def _widened(_module: nn.Module, _given: object, result: Tensor) -> Tensor:
    return result.float()


def decoder_features(config: WanVaeConfig) -> tuple[Shape, ...]:
    """Return the shapes of the features that the decoder carries from chunk to chunk."""
    with torch.device("meta"):
        latents = torch.empty(1, config.z_dim, 1, 1, 1)
        return _features(autoencoder(config).decoder, latents, latents, first_chunk=True)


def encoder_features(config: WanVaeConfig) -> tuple[Shape, ...]:
    """Return the shapes of the features that the encoder carries from chunk to chunk."""
    side = config.spatial_factor // config.patch
    with torch.device("meta"):
        first, following = (torch.empty(1, config.in_channels, frames, side, side) for frames in (1, STRETCH))
        return _features(autoencoder(config).encoder, first, following)


def _features(half: nn.Module, first: Tensor, following: Tensor, **options: bool) -> tuple[Shape, ...]:
    """Run a half of the VAE on two chunks of one latent row, and return the shapes of what is in its cache then."""
    cache: list[Any] = [None] * sum(1 for _ in half.modules())
    used = [0]
    half(first, feat_cache=cache, feat_idx=used, **options)
    half(following, feat_cache=cache, feat_idx=[0])
    return tuple((one.shape[1], one.shape[2], one.shape[3]) for one in cache[: used[0]])


def through(
    half: Callable[..., Tensor], hidden: Tensor, carried: tuple[Tensor, ...], shapes: tuple[Shape, ...], **options: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a half of the VAE on a chunk; return its result, and the features that the next chunk takes.

    Args:
        half: diffusers' encoder or decoder.
        hidden: the chunk.
        carried: features from the chunk before; empty = there is none.
        shapes: shapes of the features.
        options: further arguments of ``half``.
    """
    cache: list[Any] = [feature.float() for feature in carried] or [None] * len(shapes)
    result = half(hidden, feat_cache=cache, feat_idx=[0], **options)

    def whole(feature: Tensor | str, shape: Shape) -> Tensor:
        channels, frames, rows = shape
        if isinstance(feature, str):  # diffusers' mark of a convolution that the first chunk does not go through
            height, width = hidden.shape[-2:]
            return hidden.new_zeros(1, channels, frames, rows * height, rows * width)
        return F.pad(feature, (0, 0, 0, 0, frames - feature.shape[2], 0))

    return result, tuple(map(whole, cache, shapes))


def _moments(config: WanVaeConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return config.latents_mean, config.latents_std
