"""Pixels to latents, by the encoder that a bundle has: what a generation is to begin or go on with."""

from collections.abc import Callable

import numpy as np

from adacache_engines.base import Backend
from adacache_engines.bundle import Bundle
from adacache_engines.errors import InputError
from adacache_engines.latent_space import takes_images
from adacache_engines.manifest import LatentSpace
from adacache_runtime.bound import Bound
from adacache_runtime.samplers import Floats
from adacache_runtime.windows import encoded_windows

Noise = Callable[[tuple[int, ...]], Floats]  # a shape to float32 values of a standard normal distribution


def drawn(seed: int) -> Noise:
    """Noise of a generator; the same seed gives the same latents."""
    generator = np.random.default_rng(seed)
    return lambda shape: generator.standard_normal(shape, np.float32)


def no_noise(shape: tuple[int, ...]) -> Floats:
    """Takes the mean of each distribution for its sample."""
    return np.zeros(shape, np.float32)


def check_encoder(space: LatentSpace) -> None:
    """
    Raises:
        InputError: the bundle has nothing that turns pixels into latents; says what to do.
    """
    if space.decoder != "pixels" and not space.encoding:
        raise InputError(
            "this bundle has no encoder of images and clips: export the checkpoint with --vae DIR (the folder of the "
            "model's VAE), or encode them with the model's own code, and give them with a mask as --latents FILE.npz"
        )


def encode(bundle: Bundle, backend: Backend, pixels: Floats, noise: Noise) -> Floats:
    """Runs the bundle's encoder. It is loaded for the call and let go of.

    Each of its graphs gives a normal distribution, and the next takes a sample of it; noise is drawn once for all
    images, (frames, channels, height, width), and once for every window, (1, channels, latent frames, height, width),
    in order.

    Args:
        bundle: with an encoder.
        backend: that runs it.
        pixels: (3, frames, height, width), -1 to 1; of a height and width that latents make no whole multiple of, what
            is beyond is seen but gives no latents.
        noise: what the samples deviate by.

    Returns:
        (channels, latent frames, latent height, latent width), as the model has them.

    Raises:
        InputError: the bundle has no encoder, and what to do; or these are no pixels.
    """
    space = bundle.manifest.latent
    if space.decoder == "pixels":
        return np.ascontiguousarray(pixels, np.float32)
    check_encoder(space)
    least, channels = space.spatial_factor, space.encoding[0].inputs[0].axes[1]
    if pixels.ndim != 4 or pixels.shape[0] != channels or pixels.shape[1] < 1 or min(pixels.shape[2:]) < least:
        raise InputError(
            f"pixels {pixels.shape} cannot be encoded: expected ({channels}, frames, height, width), at least {least} "
            "pixels each way"
        )
    if not np.isfinite(pixels).all():
        raise InputError("the pixels to encode contain NaN or infinity")
    height, width = (side // space.spatial_factor for side in pixels.shape[2:])
    sizes = {"height": height, "width": width, "pixel_height": pixels.shape[2], "pixel_width": pixels.shape[3]}
    value: Floats = pixels
    for graph in space.encoding:
        through = _images if takes_images(graph) else _windows
        value = through(Bound(graph, backend), space, value, sizes, noise)
    return value


def _images(engine: Bound, space: LatentSpace, value: Floats, sizes: dict[str, int], noise: Noise) -> Floats:
    """A sample of what a graph of images makes of (channels, frames, height, width), of the same axes."""
    images = value.swapaxes(0, 1)
    parts = [images[start : start + space.images] for start in range(0, len(images), space.images)]
    given = [engine(part, {**sizes, "images": len(part)}) for part in parts]
    mean, deviation = (np.concatenate(some) for some in zip(*given, strict=True))
    return (mean + deviation * noise(mean.shape)).swapaxes(0, 1)


def _windows(engine: Bound, space: LatentSpace, value: Floats, sizes: dict[str, int], noise: Noise) -> Floats:
    """Likewise of a graph of windows."""
    samples = []
    for window in encoded_windows(space.windows, value.shape[1]):
        part = value[None, :, window.start : window.stop]
        mean, deviation = engine(part, {**sizes, "pixel_frames": part.shape[2], "frames": window.made})
        samples.append((mean + deviation * noise(mean.shape))[0, :, window.kept])
    return np.concatenate(samples, 1)
