"""The stages of a VAE and how they are fed: what each kind of VAE gives to the export."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from adacache_engines.bundle.latent_space import ChunkRule
from adacache_engines.bundle.tensors import TensorSpec
from adacache_export.stages import Stage

PREFIX = "vae."  # begins the keys of the VAE's weights in the bundle
ENCODER = ("encoder.", "quant_conv.")  # begin the names of an encoder's tensors in diffusers
# 1/26 of a grey level. Float32 sums in another order make 9e-6 through some forty layers with random weights
TOLERANCE = 3e-4


@dataclass(frozen=True)
class Coding:
    """The stages of a VAE of known sizes, and how they are fed.

    Attributes:
        channels: number of channels of the latents.
        spatial_factor: number of pixels of a latent row or column.
        decoding, encoding: stages as :class:`adacache_engines.bundle.latent_space.LatentSpace` describes their graphs,
            written for float32; :mod:`adacache_export.vaes.precision` narrows them. Modules are on the meta device.
            Their parameters have the names of the VAE's folder, under ``PREFIX``.
        first_decoding, first_encoding: stages of a video's first chunk; empty = the same.
        chunks, images, tile, tiles_chunks: the fields of ``LatentSpace`` of these names.
    """

    channels: int
    spatial_factor: int
    decoding: tuple[Stage, ...]
    encoding: tuple[Stage, ...] = ()
    first_decoding: tuple[Stage, ...] = ()
    first_encoding: tuple[Stage, ...] = ()
    chunks: ChunkRule = field(default_factory=ChunkRule)
    images: int = 1
    tile: int | None = None
    tiles_chunks: bool = False

    @property
    def decoders(self) -> tuple[Stage, ...]:
        """All stages from latents to pixels."""
        return (*self.first_decoding, *self.decoding)

    @property
    def encoders(self) -> tuple[Stage, ...]:
        """All stages from pixels to latents."""
        return (*self.first_encoding, *self.encoding)


def chunk_decoder(make: Callable[[], nn.Module], channels: int) -> Stage:
    """Return a decoder that is one stage and takes a chunk of latent frames.

    Args:
        make: function that makes the module, from latents (1, channels, frames, height, width) to pixels (1, 3,
            pixel_frames, pixel_height, pixel_width). Its parameters have the names of the VAE's folder.
        channels: number of channels of the latents.
    """
    axes = ("frames", "height", "width")
    latents = TensorSpec(name="latents", dtype="float32", axes=(1, channels, *axes))
    pixels = TensorSpec(name="pixels", dtype="float32", axes=(1, 3, *(f"pixel_{axis}" for axis in axes)))
    with torch.device("meta"):
        module = make().eval()
    return Stage("decoder", "decoder", module, PREFIX, (latents,), (pixels,), tolerance=TOLERANCE)
