"""What a kind of VAE gives to export."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from adacache_engines.bundle.latent_space import Windows
from adacache_engines.bundle.tensors import TensorSpec
from adacache_export.stages import Stage

PREFIX = "vae."  # keeps the VAE's weights apart from the model's in one weights file
ENCODER = ("encoder.", "quant_conv.")  # begin the names of its tensors, where a folder has diffusers' names
# 1/26 of a grey level. Float32 sums in another order through some forty layers in a row: 9e-6 with random weights
TOLERANCE = 3e-4


@dataclass(frozen=True)
class Coding:
    """A VAE of settled sizes.

    Attributes:
        channels: of the latents.
        spatial_factor: pixels of a latent row or column.
        decoding, encoding: stages as :class:`adacache_engines.bundle.latent_space.LatentSpace` describes their
            graphs, with
            modules on the meta device, and parameters under ``PREFIX`` and their names in the VAE's folder, written
            for float32; :mod:`adacache_export.vaes.precision` narrows them.
        windows, images, tile, tiles_windows: as of ``LatentSpace``.
    """

    channels: int
    spatial_factor: int
    decoding: tuple[Stage, ...]
    encoding: tuple[Stage, ...] = ()
    windows: Windows = field(default_factory=Windows)
    images: int = 1
    tile: int | None = None
    tiles_windows: bool = False


def window_decoder(make: Callable[[], nn.Module], channels: int) -> Stage:
    """A decoder that is one graph of windows.

    Args:
        make: the module, (1, channels, frames, height, width) -> (1, 3, pixel_frames, pixel_height, pixel_width). Its
            parameters have the names that they have in the VAE's folder.
        channels: of the latents.
    """
    axes = ("frames", "height", "width")
    latents = TensorSpec(name="latents", dtype="float32", axes=(1, channels, *axes))
    pixels = TensorSpec(name="pixels", dtype="float32", axes=(1, 3, *(f"pixel_{axis}" for axis in axes)))
    with torch.device("meta"):
        module = make().eval()
    return Stage("decoder", "decoder", module, PREFIX, (latents,), (pixels,), tolerance=TOLERANCE)
