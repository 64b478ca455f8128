"""Latents to pixels, by the decoder that a bundle has."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from adacache_engines.base import Backend
from adacache_engines.bundle import Bundle
from adacache_engines.errors import InputError
from adacache_engines.manifest import LatentSpace
from adacache_engines.tensors import NUMPY_DTYPES
from adacache_runtime.video import Frames, to_pixels


def decode(bundle: Bundle, backend: Backend, latents: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Runs the bundle's decoder on each frame in turn. It is loaded for the call and let go of.

    Args:
        bundle: with a decoder.
        backend: that runs it.
        latents: (channels, frames, height, width) of one prompt.

    Yields:
        (3, 1, pixel height, pixel width), about -1 to 1, which :func:`adacache_runtime.video.to_pixels` takes.

    Raises:
        InputError: the bundle has no decoder; says what to do.
    """
    space, device = bundle.manifest.latent, backend.device
    if space.decoder_graph is None:
        raise InputError(f"this bundle has no decoder; {without_decoder(space)}")
    graph = space.decoder_graph
    sizes = space.image_axes(*latents.shape[2:])
    buffers = {
        spec.name: device.empty(spec.shape(sizes), NUMPY_DTYPES[spec.dtype]) for spec in (*graph.inputs, *graph.outputs)
    }
    call = backend.load(graph).bind(buffers)
    for index in range(latents.shape[1]):
        buffers["latents"].write(np.ascontiguousarray(latents[None, :, index]))
        call()
        yield buffers["pixels"].read().astype(np.float32, copy=False).transpose(1, 0, 2, 3)


def render(
    bundle: Bundle, backend: Backend, latents: NDArray[np.float32], on_frame: Callable[[], None] = lambda: None
) -> Frames:
    """The video of one prompt: decoded, or the latents themselves where they are pixels.

    Args:
        bundle, backend, latents: as of :func:`decode`.
        on_frame: called after each frame that is decoded.

    Returns:
        (frames, height, width, 3) RGB.

    Raises:
        InputError: the bundle has no decoder; says what to do.
        NonFiniteError: NaN or infinity among the values.
    """
    if bundle.manifest.latent.decoder == "pixels":
        return to_pixels(latents)
    frames = []
    for pixels in decode(bundle, backend, latents):
        frames.append(to_pixels(pixels))
        on_frame()
    return np.concatenate(frames)


def without_decoder(space: LatentSpace) -> str:
    """What to do about a bundle that has none."""
    if space.frame_by_frame():
        return "to get videos, export the checkpoint with --vae DIR (the model's AutoencoderKL, a diffusers folder)"
    return "the VAE of this model is not supported yet: decode the latents with the model's own code"
