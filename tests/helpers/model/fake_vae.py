"""A VAE of a few numpy lines for the fake model: a decoder, and an encoder in two graphs, images and then time."""

from collections.abc import Mapping

import numpy as np

from adacache_engines.bundle.latent_space import ChunkRule
from adacache_engines.bundle.manifest import Graph, LatentSpace
from adacache_engines.bundle.tensors import TensorSpec
from adacache_engines.contract.device import Array
from adacache_export.frame_rules import CHUNKS_OF_17, FIRST_ALONE_THEN_FOURS
from adacache_runtime.samplers.update import Floats
from tests.helpers.model.fake_model import WIDTH, functions, graph, spec

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


# a VAE that is causal in time: each latent frame sees the one before, which graphs carry from chunk to chunk


CARRIED = {"last_out": "last"}
LAST, LAST_OUT = (spec(name, 1, WIDTH, 1, f"height_{FACTOR}", f"width_{FACTOR}") for name in ("last", "last_out"))


def _carrying(name: str, given: TensorSpec, made: TensorSpec, first: bool) -> Graph:
    """Return a graph that carries the last frame of a chunk, with the rows of its pixels."""
    one = graph(name, (given,) if first else (given, LAST), (made, LAST_OUT))
    return one.model_copy(update={"carried": CARRIED})


def _clips(name: str, channels: int, frames: int | str, prefix: str = "") -> TensorSpec:
    return spec(name, 1, channels, frames, f"{prefix}height", f"{prefix}width")


CARRYING = SPACE.model_copy(
    update={
        "frames": FIRST_ALONE_THEN_FOURS,
        "first_decoding": (
            _carrying("decoder.first", _clips("latents", WIDTH, 1), _clips("pixels", 3, 1, "pixel_"), first=True),
        ),
        "decoding": (
            _carrying(
                "decoder",
                _clips("latents", WIDTH, "frames"),
                _clips("pixels", 3, "pixel_frames", "pixel_"),
                first=False,
            ),
        ),
        "first_encoding": (
            _carrying("vae_encoder.first", _clips("pixels", 3, 1, "pixel_"), _clips("mean", WIDTH, 1), first=True),
        ),
        "encoding": (
            _carrying(
                "vae_encoder",
                _clips("pixels", 3, "pixel_frames", "pixel_"),
                _clips("mean", WIDTH, "frames"),
                first=False,
            ),
        ),
        "chunks": ChunkRule(frames=4, latents=1, stretch=4, first_alone=True),
    }
)


def larger(latents: Array) -> Array:
    """Return latents with the rows and columns of pixels."""
    return latents.repeat(FACTOR, -2).repeat(FACTOR, -1)


def causal(frames: Array, before: Array | None) -> Array:
    """Return each frame with half of the one before it, axis 2; ``before`` is the frame before the first."""
    earlier = np.zeros_like(frames[:, :, :1]) if before is None else before
    return frames + np.concatenate([earlier, frames[:, :, :-1]], 2) / np.float32(2)


def _decode_causal(given: Mapping[str, Array]) -> dict[str, Array]:
    frames = larger(given["latents"])
    made = causal(frames, given.get("last"))
    return {"pixels": made.repeat(4, 2) if "last" in given else made, "last_out": frames[:, :, -1:]}


def _encode_causal(given: Mapping[str, Array]) -> dict[str, Array]:
    pixels = given["pixels"]
    frames = pixels[:, :, (3 if "last" in given else 0) :: 4]  # the last of each four
    last = None if "last" not in given else blocks(given["last"])
    return {"mean": causal(blocks(frames), last), "last_out": larger(blocks(frames))[:, :, -1:]}


CARRYING_ENGINES = {
    **functions(),
    "decoder.first": _decode_causal,
    "decoder": _decode_causal,
    "vae_encoder.first": _encode_causal,
    "vae_encoder": _encode_causal,
}
