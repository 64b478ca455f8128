"""Latents to pixels, by the decoder that a bundle has: window by window, so that a long video is never held whole."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from adacache_engines.base import Backend
from adacache_engines.bundle import Bundle
from adacache_engines.errors import InputError
from adacache_engines.latent_space import takes_images
from adacache_engines.manifest import Graph, LatentSpace
from adacache_runtime.bound import Bound, shapes
from adacache_runtime.samplers import Floats
from adacache_runtime.tiles import by_tiles, check_tile, spans
from adacache_runtime.video import Frames, to_pixels
from adacache_runtime.windows import Window, decoded_windows

WITHOUT_DECODER = "to get videos, export the checkpoint with --vae DIR (the folder of the model's VAE)"  # what to do


def decode(
    bundle: Bundle, backend: Backend, latents: Floats, frames: int | None = None, tile: int | None = None
) -> Iterator[Floats]:
    """Runs the bundle's decoder on each window of the latents in turn. It is loaded for the call and let go of.

    Args:
        bundle: with a decoder.
        backend: that runs it.
        latents: (channels, frames, height, width) of one prompt.
        frames: of the video, by which the last window's are counted; None = as many as the latents can hold.
        tile: pixels, side of the tiles that larger frames are decoded by; None = what the bundle says.

    Yields:
        (3, some frames, pixel height, pixel width), about -1 to 1, which :func:`adacache_runtime.video.to_pixels`
        takes: those of a window, or a few images of it.

    Raises:
        InputError: the bundle has no decoder, and what to do; or so many frames do not belong to these latents.
        OutOfRangeError: there are no such tiles.
    """
    space = bundle.manifest.latent
    if not space.decoding:
        raise InputError(f"this bundle has no decoder; {WITHOUT_DECODER}")
    windows = decoded_windows(space, latents.shape[1], frames)
    side = _side(space, tile, latents.shape[2:], len(windows))
    engines = [Bound(graph, backend) for graph in space.decoding]
    for window in windows:
        parts = iter([latents[:, window.start : window.stop]])
        for engine in engines:
            parts = _through(engine, parts, space, window, side if engine is engines[-1] else None)
        yield from parts


def _through(
    engine: Bound, parts: Iterator[Floats], space: LatentSpace, window: Window, side: int | None
) -> Iterator[Floats]:
    """What a graph makes of (channels, frames, height, width): all of a window, or some of its images at a time."""

    def run(value: Floats) -> Floats:
        height, width = value.shape[-2:]
        sizes = space.window_axes(window.stop - window.start, height, width, len(value))
        return engine(value, sizes)[0]

    for part in parts:
        if not takes_images(engine.graph):
            yield by_tiles(run, part[None], side, space.spatial_factor)[0][:, window.kept]
            continue
        for start in range(0, part.shape[1], space.images):
            images = part[:, start : start + space.images].swapaxes(0, 1)
            yield by_tiles(run, images, side, space.spatial_factor).swapaxes(0, 1)


def decoder_sizes(
    space: LatentSpace, shape: Sequence[int], frames: int | None = None, tile: int | None = None
) -> list[tuple[Graph, dict[str, int]]]:
    """At which sizes of the axes :func:`decode` binds its engines, once each.

    Args:
        space: of the bundle.
        shape: of the latents of one prompt.
        frames, tile: as of :func:`decode`.
    """
    _, latent_frames, *whole = shape
    found: dict[object, tuple[Graph, dict[str, int]]] = {}
    windows = decoded_windows(space, latent_frames, frames)
    tiled = _side(space, tile, whole, len(windows))
    for window in windows:
        stretched = any(not takes_images(graph) for graph in space.decoding)
        count = window.count if stretched else window.stop - window.start
        batches = {space.images, count % space.images} - {0} if count > space.images else {count}
        for graph in space.decoding:
            side = tiled if graph is space.decoding[-1] else None
            heights, widths = ({stop - start for start, stop in spans(length, side)} for length in whole)
            for images, height, width in itertools.product(batches, heights, widths):
                sizes = space.window_axes(window.stop - window.start, height, width, images)
                found[graph.name, shapes(graph, sizes)] = graph, sizes
    return list(found.values())


def _side(space: LatentSpace, tile: int | None, size: Sequence[int], windows: int) -> int | None:
    """Of a tile in latent rows and columns; None where frames of this latent size are not cut."""
    check_tile(space, tile)
    side = (tile or space.tile or 0) // space.spatial_factor
    cut = max(size) > side or (space.tiles_windows and tile is None and windows > 1)
    return side if side and cut else None


def stream(
    bundle: Bundle,
    backend: Backend,
    latents: Floats,
    frames: int | None = None,
    tile: int | None = None,
    on_frame: Callable[[], None] = lambda: None,
) -> Iterator[Frames]:
    """The video of one prompt in parts: decoded, or the latents themselves where they are pixels.

    Args:
        bundle, backend, latents, frames, tile: as of :func:`decode`.
        on_frame: called after each frame that is decoded.

    Yields:
        (some frames, height, width, 3) RGB.

    Raises:
        InputError, OutOfRangeError: as of :func:`decode`.
        NonFiniteError: NaN or infinity among the values.
    """
    if bundle.manifest.latent.decoder == "pixels":
        yield to_pixels(latents)
        return
    for pixels in decode(bundle, backend, latents, frames, tile):
        part = to_pixels(pixels)
        for _ in part:
            on_frame()
        yield part


def render(
    bundle: Bundle,
    backend: Backend,
    latents: Floats,
    frames: int | None = None,
    tile: int | None = None,
    on_frame: Callable[[], None] = lambda: None,
) -> Frames:
    """All of :func:`stream`: (frames, height, width, 3) RGB."""
    return np.concatenate(list(stream(bundle, backend, latents, frames, tile, on_frame)))
