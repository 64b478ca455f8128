"""Pixels to latents, by the encoder that a bundle has: images and clips that a video contains."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.latent_space import takes_images
from adacache_engines.bundle.manifest import Graph, LatentSpace
from adacache_engines.contract.engine import Backend
from adacache_engines.errors import InputError
from adacache_runtime.samplers.update import Floats
from adacache_runtime.vae.carrying import CarryingGraph, load_step
from adacache_runtime.vae.chunks import encoded_chunks
from adacache_runtime.vae.graph import Sizes, Step, VaeGraph, batches
from adacache_runtime.vae.tiles import by_tiles, spans, tile_side

LEAST = np.finfo(np.float32).tiny  # deviation, so that it has a logarithm

Noise = Callable[[tuple[int, ...]], Floats]  # a shape to float32 values of a standard normal distribution


def drawn(seed: int) -> Noise:
    """Return a source of noise; the same seed gives the same latents."""
    generator = np.random.default_rng(seed)
    return lambda shape: generator.standard_normal(shape, np.float32)


def most_likely(shape: tuple[int, ...]) -> Floats:
    """Return no noise, so that a sample of a distribution is its mean."""
    return np.zeros(shape, np.float32)


def can_encode(space: LatentSpace) -> bool:
    """Return whether a bundle can turn pixels into latents."""
    return space.decoder == "pixels" or bool(space.encoding)


def check_encoder(space: LatentSpace) -> None:
    """Check that a bundle can turn pixels into latents.

    Raises:
        InputError: it cannot; says what to do.
    """
    if not can_encode(space):
        raise InputError(
            "this bundle has no encoder of images and clips: export the checkpoint with --vae DIR (the folder of the "
            "model's VAE), or encode them with the model's own code, and give what comes out in --latents FILE.npz"
        )


def encode(
    bundle: Bundle,
    backend: Backend,
    pixels: Floats,
    noise: Noise,
    tile: int | None = None,
    frames: int | None = None,
) -> Floats:
    """Run the bundle's encoder, on some images and then on a chunk at a time; each graph is loaded for its turn only.

    Each graph gives a normal distribution, and the next takes a sample of it, or its mean where the graph gives nothing
    else. Noise is drawn once for all images, (frames, channels, height, width), and once for every chunk, (1, channels,
    latent frames, height, width), in order.

    Args:
        bundle: a bundle with an encoder.
        backend: the backend that runs it.
        pixels: (3, frames, height, width), -1 to 1; rows and columns beyond a whole number of latent
            ones are seen but give no latents.
        noise: draws the noise of the samples, by shape.
        tile: side in pixels of the tiles by which larger frames are encoded; None = the bundle's. Where tiles overlap,
            the means and log deviations of the first graph are blended.
        frames: number of frames of the clip; those that ``pixels`` lacks are grey, 0, and are not all made at once.
            None = as many as ``pixels`` has.

    Returns:
        (channels, latent frames, latent height, latent width), as the model has them.

    Raises:
        InputError: the bundle has no encoder, or the array has another shape or numbers that are not finite.
        OutOfRangeError: tiles of this side cannot be cut.
    """
    space = bundle.manifest.latent
    length = pixels.shape[1] if frames is None else frames
    if space.decoder == "pixels":
        return np.ascontiguousarray(_part(pixels, 0, length), np.float32)
    check_encoder(space)
    least, channels = space.spatial_factor, space.encoding[0].inputs[0].axes[1]
    if pixels.ndim != 4 or pixels.shape[0] != channels or pixels.shape[1] < 1 or min(pixels.shape[2:]) < least:
        raise InputError(
            f"pixels {pixels.shape} cannot be encoded: expected ({channels}, frames, height, width), at least {least} "
            "pixels each way"
        )
    if not np.isfinite(pixels).all():
        raise InputError("the pixels to encode contain NaN or infinity")
    value, shape = pixels, (pixels.shape[0], length, *pixels.shape[2:])
    for step in encoder_steps(space, shape, tile):
        side = _side(space, shape, tile) if step.graph is space.encoding[0] else None
        through = _images if takes_images(step.graph) else _chunks
        value = through(load_step(step, backend), space, value, length, side, noise)
        length = value.shape[1]
    return value


def encoder_steps(space: LatentSpace, shape: Sequence[int], tile: int | None = None) -> list[Step]:
    """Return each graph of :func:`encode` with the sizes of the axes at which it is called.

    Args:
        space: latent space of the bundle.
        shape: shape of the pixels.
        tile: as in :func:`encode`.
    """
    _, frames, *size = shape
    steps = []
    for index, graph in enumerate(space.encoding):
        unit = _unit(space, graph)
        side = _side(space, shape, tile) if graph is space.encoding[0] else None
        if takes_images(graph):
            counts = [len(batch) for batch in batches(frames, space.images)]
        else:
            chunks = encoded_chunks(space.chunks, frames)
            counts, frames = [chunk.stop - chunk.start for chunk in chunks], sum(one.count for one in chunks)
        heights, widths = ([stop - start for start, stop in spans(length, side, unit)] for length in size)
        if space.first_encoding:
            following, first = (
                tuple(_axes(space, unit, *some) for some in itertools.product(lengths, heights, widths))
                for lengths in (sorted({*counts[1:]}), [1])
            )
            steps.append(Step(graph, following, space.first_encoding[index], first))
        else:
            sizes = itertools.product(sorted({*counts}), sorted({*heights}), sorted({*widths}))
            steps.append(Step(graph, tuple(_axes(space, unit, *some) for some in sizes)))
        size = [length // unit for length in size]
    return steps


def _unit(space: LatentSpace, graph: Graph) -> int:
    """Return how many rows of a graph's input become a latent row."""
    return space.spatial_factor if graph is space.encoding[0] else 1


def _side(space: LatentSpace, shape: Sequence[int], tile: int | None) -> int | None:
    size = [length // space.spatial_factor for length in shape[2:]]
    return tile_side(space, tile, size, len(encoded_chunks(space.chunks, shape[1])))


def _axes(space: LatentSpace, unit: int, count: int, height: int, width: int) -> Sizes:
    """Return the sizes of a graph's axes, for ``count`` images or frames of a height and width."""
    time = {"pixel_frames": count, "frames": space.chunks.encoded(count)}
    inside = space.image_axes(height // unit, width // unit, count)
    return {**inside, **time, "pixel_height": height, "pixel_width": width}


def _part(value: Floats, start: int, stop: int) -> Floats:
    """Return some frames of (channels, frames, height, width); those that it lacks are zeros."""
    part = value[:, start:stop]
    lacking = stop - start - part.shape[1]
    return np.pad(part, ((0, 0), (0, lacking), (0, 0), (0, 0))) if lacking else part


def _images(
    engine: VaeGraph | CarryingGraph, space: LatentSpace, value: Floats, frames: int, side: int | None, noise: Noise
) -> Floats:
    """Run a graph of images on (channels, frames, height, width), and draw a sample with the same axes."""
    parts = (_part(value, batch.start, batch.stop).swapaxes(0, 1) for batch in batches(frames, space.images))
    given = [_distribution(engine, space, part, len(part), side) for part in parts]
    return _sample([np.concatenate(some) for some in zip(*given, strict=True)], noise).swapaxes(0, 1)


def _chunks(
    engine: VaeGraph | CarryingGraph, space: LatentSpace, value: Floats, frames: int, side: int | None, noise: Noise
) -> Floats:
    """Run a graph of chunks on (channels, frames, height, width), and draw a sample with the same axes."""
    samples = []
    for chunk in encoded_chunks(space.chunks, frames):
        part = _part(value, chunk.start, chunk.stop)[None]
        sample = _sample(_distribution(engine, space, part, part.shape[2], side), noise)
        samples.append(sample[0, :, chunk.kept])
    return np.concatenate(samples, 1)


def _sample(distribution: Sequence[Floats], noise: Noise) -> Floats:
    """Return a sample of a distribution with a mean and a standard deviation, or its mean where that is all."""
    mean, *deviations = distribution
    for deviation in deviations:
        mean = mean + deviation * noise(mean.shape)
    return mean


def _distribution(
    engine: VaeGraph | CarryingGraph, space: LatentSpace, value: Floats, count: int, side: int | None
) -> list[Floats]:
    """Return the mean of the latents of ``count`` images or frames, and their deviation where the graph gives it."""
    unit = _unit(space, engine.graph)

    def run(part: Floats) -> list[Floats]:
        return engine(part, _axes(space, unit, count, *part.shape[-2:]))

    if side is None:
        return run(value)

    def moments(part: Floats) -> Floats:
        mean, *deviations = run(part)
        return np.concatenate([mean, *(np.log(np.maximum(one, LEAST)) for one in deviations)], 1)

    outputs = len(engine.graph.outputs) - len(engine.graph.carried)
    mean, *log_deviations = np.split(by_tiles(moments, value, side, taken=unit), outputs, 1)
    return [mean, *map(np.exp, log_deviations)]
