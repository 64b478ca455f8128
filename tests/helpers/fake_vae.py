"""A VAE of a few numpy lines for the fake model: a decoder, and an encoder in two graphs, images and then time."""

import numpy as np

from adacache_engines.bundle.latent_space import ChunkRule
from adacache_engines.bundle.manifest import LatentSpace
from adacache_engines.contract.device import Array
from adacache_export.frame_rules import CHUNKS_OF_17
from adacache_runtime.samplers.update import Floats
from tests.helpers.fake_model import WIDTH, functions, graph, spec

FACTOR = 2


DECODER = graph(
    "decoder",
    (spec("latents", "images", WIDTH, "height", "width"),),
    (spec("pixels", "images", 3, "pixel_height", "pixel_width"),),
)


SPACE = LatentSpace(
    channels=WIDTH,
    patch=(1, 1, 1),
    spatial_factor=FACTOR,
    decoder="autoencoder-kl",
    decoding=(DECODER,),
)


IMAGES = graph(
    "vae_encoder.spatial",
    (spec("pixels", "images", 3, "pixel_height", "pixel_width"),),
    tuple(spec(name, "images", WIDTH, "height", "width") for name in ("mean", "deviation")),
)


OVER_TIME = graph(
    "vae_encoder.temporal",
    (spec("coded", 1, WIDTH, "pixel_frames", "height", "width"),),
    tuple(spec(name, 1, WIDTH, "frames", "height", "width") for name in ("mean", "deviation")),
)


CHAIN = SPACE.model_copy(
    update={
        "frames": CHUNKS_OF_17,
        "encoding": (IMAGES, OVER_TIME),
        "chunks": ChunkRule(frames=17, latents=5, stretch=4, spare="first"),
        "images": 4,
    }
)


def blocks(pixels: Array) -> Array:
    """Return the mean of each 2 x 2 pixels."""
    *before, height, width = pixels.shape
    whole = pixels[..., : height // 2 * 2, : width // 2 * 2]
    means: Array = whole.reshape(*before, height // 2, 2, width // 2, 2).mean((-3, -1))
    return means


def distribution(mean: Array) -> dict[str, Array]:
    return {"mean": mean, "deviation": np.exp(mean / 2)}


def every_fourth(frames: Array, short: int = 0) -> dict[str, Array]:
    count = -(-(frames.shape[2] + short) // 4)
    return distribution(frames[:, :, np.minimum(4 * np.arange(count), frames.shape[2] - 1)])


ENGINES = {
    **functions(),
    "vae_encoder.spatial": lambda given: distribution(blocks(given["pixels"])),
    "vae_encoder.temporal": lambda given: every_fourth(given["coded"]),
    "vae_encoder": lambda given: every_fourth(blocks(given["pixels"]), short=3),
}


def noise(*shape: int) -> Floats:
    return np.random.default_rng(0).standard_normal(shape, np.float32)
