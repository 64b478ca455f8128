"""Latents to pixels, by the decoder that a bundle has: chunk by chunk, so that a long video is never held whole."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.latent_space import takes_images
from adacache_engines.bundle.manifest import LatentSpace
from adacache_engines.contract.engine import Backend
from adacache_engines.errors import InputError
from adacache_runtime.media.frames import Frames, to_pixels
from adacache_runtime.samplers.update import Floats
from adacache_runtime.vae.carrying import CarryingGraph, load_step
from adacache_runtime.vae.chunks import Chunk, decoded_chunks
from adacache_runtime.vae.graph import Sizes, Step, VaeGraph, batches
from adacache_runtime.vae.tiles import by_tiles, spans, tile_side

WITHOUT_DECODER = "to get videos, export the checkpoint with --vae DIR (the folder of the model's VAE)"  # what to do


def decode(
    bundle: Bundle, backend: Backend, latents: Floats, frames: int | None = None, tile: int | None = None
) -> Iterator[Floats]:
    """Run the bundle's decoder on each chunk of the latents in turn; it is loaded for this call only.

    Args:
        bundle: a bundle with a decoder.
        backend: the backend that runs it.
        latents: (channels, frames, height, width) of one prompt.
        frames: number of frames of the video, which may end within the last chunk; None = as many as the latents can
            hold.
        tile: side in pixels of the tiles by which larger frames are decoded; None = the bundle's.

    Yields:
        (3, some frames, pixel height, pixel width), about -1 to 1, which :func:`adacache_runtime.media.video.to_pixels`
        takes: all frames of a chunk, or some of its images.

    Raises:
        InputError: the bundle has no decoder, or ``frames`` does not belong to these latents.
        OutOfRangeError: tiles of this side cannot be cut.
    """
    space = bundle.manifest.latent
    if not space.decoding:
        raise InputError(f"this bundle has no decoder; {WITHOUT_DECODER}")
    chunks = decoded_chunks(space, latents.shape[1], frames)
    side = tile_side(space, tile, latents.shape[2:], len(chunks))
    engines = [load_step(step, backend) for step in decoder_steps(space, latents.shape, frames, tile)]
    for chunk in chunks:
        parts = iter([latents[:, chunk.start : chunk.stop]])
        for engine in engines:
            parts = _through(engine, parts, space, chunk, side if engine is engines[-1] else None)
        yield from parts


def _through(
    engine: VaeGraph | CarryingGraph, parts: Iterator[Floats], space: LatentSpace, chunk: Chunk, side: int | None
) -> Iterator[Floats]:
    """Run a graph on parts (channels, frames, height, width): on a whole chunk, or on some of its images at a time."""

    def run(value: Floats) -> Floats:
        height, width = value.shape[-2:]
        sizes = space.chunk_axes(chunk.stop - chunk.start, height, width, len(value))
        return engine(value, sizes)[0]

    for part in parts:
        if not takes_images(engine.graph):
            yield by_tiles(run, part[None], side, given=space.spatial_factor)[0][:, chunk.kept]
            continue
        for batch in batches(part.shape[1], space.images):
            images = part[:, batch.start : batch.stop].swapaxes(0, 1)
            yield by_tiles(run, images, side, given=space.spatial_factor).swapaxes(0, 1)


def decoder_steps(
    space: LatentSpace, shape: Sequence[int], frames: int | None = None, tile: int | None = None
) -> list[Step]:
    """Return each graph of :func:`decode` with the sizes of the axes at which it is called.

    Args:
        space: latent space of the bundle.
        shape: shape of the latents of one prompt.
        frames, tile: as in :func:`decode`.
    """
    _, latent_frames, *whole = shape
    chunks = decoded_chunks(space, latent_frames, frames)
    tiled = tile_side(space, tile, whole, len(chunks))
    stretched = any(not takes_images(graph) for graph in space.decoding)
    fed = {  # latent frames of a chunk, images at once
        (chunk.stop - chunk.start, len(batch))
        for chunk in chunks
        for batch in batches(chunk.count if stretched else chunk.stop - chunk.start, space.images)
    }
    later = sorted({chunk.stop - chunk.start for chunk in chunks[1:]})

    def sizes(fed: Iterable[tuple[int, int]], heights: Iterable[int], widths: Iterable[int]) -> tuple[Sizes, ...]:
        every = itertools.product(fed, heights, widths)
        return tuple(space.chunk_axes(some, height, width, n) for (some, n), height, width in every)

    steps = []
    for index, graph in enumerate(space.decoding):
        side = tiled if graph is space.decoding[-1] else None
        heights, widths = ([stop - start for start, stop in spans(length, side)] for length in whole)
        if space.first_decoding:
            following, first = (sizes([(some, 1) for some in lengths], heights, widths) for lengths in (later, [1]))
            steps.append(Step(graph, following, space.first_decoding[index], first))
        else:
            steps.append(Step(graph, sizes(sorted(fed), sorted({*heights}), sorted({*widths}))))
    return steps


def stream(
    bundle: Bundle, backend: Backend, latents: Floats, frames: int | None = None, tile: int | None = None
) -> Iterator[Frames]:
    """Yield the video of one prompt in parts: decoded, or the latents themselves where they are pixels.

    Yields:
        (some frames, height, width, 3) RGB.

    Raises:
        InputError, OutOfRangeError: as in :func:`decode`.
        NonFiniteError: NaN or infinity among the values.
    """
    if bundle.manifest.latent.decoder == "pixels":
        return map(to_pixels, [latents])
    return (to_pixels(part, "the decoder's pixels") for part in decode(bundle, backend, latents, frames, tile))


def render(
    bundle: Bundle, backend: Backend, latents: Floats, frames: int | None = None, tile: int | None = None
) -> Frames:
    """Return the whole video of one prompt, (frames, height, width, 3) RGB; see :func:`stream`."""
    return np.concatenate(list(stream(bundle, backend, latents, frames, tile)))
