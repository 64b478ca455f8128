"""What a video starts from, on the command line: images at some of its frames, a clip that it continues."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.files import Bundle
from adacache_engines.contract.dry_run import Known
from adacache_engines.contract.engine import Backend
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_runtime.conditioning.clips import check_continues
from adacache_runtime.conditioning.masks import check_conditioned
from adacache_runtime.conditioning.references import Placement, alignment, latent_index, placed, snapped
from adacache_runtime.media.pictures import fit, read_image, read_last_frames
from adacache_runtime.media.video import Frames
from adacache_runtime.memory.advice import check_encoder_fit
from adacache_runtime.memory.estimate import encoder_memory
from adacache_runtime.request import Request, Settled
from adacache_runtime.vae.encode import check_encoder, drawn, encode


@dataclass(frozen=True)
class Image:
    """A frame that is given: what to call it, (1, height, width, 3) RGB, and where it goes, -1 = the last frame."""

    name: str
    frames: Frames
    at: int = 0


@dataclass(frozen=True)
class Start:
    """
    Attributes:
        pixels: references (3, frames, height, width), -1 to 1.
        placements: where they go.
        notes: what to tell the user.
    """

    pixels: tuple[NDArray[np.float32], ...]
    placements: tuple[Placement, ...]
    notes: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, for a bundle that was exported with ``--conditioning``."""
    add = parser.add_argument_group("start").add_argument
    add("--image", metavar="FILE", type=Path, action="append", default=[], help="a frame that is given, repeatable")
    add(
        "--image-at",
        metavar="FRAME",
        type=int,
        action="append",
        default=[],
        help="frame of the video, one an image, from 0, or from -1 at the end (default: 0); a model that codes frames "
        "in chunks can have one where a chunk begins, and takes the nearest",
    )
    add("--video", metavar="FILE", type=Path, help="a clip to continue: the video begins with its last frames")
    add(
        "--edit",
        metavar="RATIO",
        type=float,
        default=0.0,
        help="0 = keep what is given as it is; the nearer to 1, the more of it may change (default: 0)",
    )
    add(
        "--loops",
        metavar="N",
        type=int,
        default=1,
        help="clips that continue one another, as one video; the seed counts up (default: 1)",
    )


def read_start(options: argparse.Namespace, bundle: Bundle, settled: Settled) -> Start | None:
    """Reads what the user named; None where that is nothing.

    Raises:
        InputError: the bundle cannot start from it, a file cannot be read, or two fall on the same frame.
        OutOfRangeError: a frame that the video has not, or a ratio that is none.
    """
    manifest, space, frames = bundle.manifest, bundle.manifest.latent, settled.latents.shape[2]
    if options.loops < 1:
        raise OutOfRangeError(f"{options.loops} loops are not possible; choose at least 1")
    if options.loops > 1:
        check_conditioned(manifest)
        check_continues(space, frames)
    places = options.image_at or [0] * len(options.image[:1])
    if len(places) != len(options.image):
        raise InputError(f"{len(options.image)} of --image and {len(places)} of --image-at: give one of these for each")
    if not options.image and options.video is None:
        return None
    check_start(bundle)
    if not 0 <= options.edit < 1:
        raise OutOfRangeError(f"--edit {options.edit} is not possible; choose 0 or more, below 1")
    if settled.masking is not None:
        raise InputError("the mask in --latents says already what is given: leave it out, or the images and the clip")
    count = space.frames.frames_of(space.continued)
    clip = None if options.video is None else read_last_frames(options.video, count)
    images = [Image(str(path), read_image(path), at) for path, at in zip(options.image, places, strict=True)]
    return start_with(bundle, settled, images, clip, options.edit)


def check_start(bundle: Bundle) -> None:
    """
    Raises:
        InputError: videos of this bundle cannot start from anything.
    """
    check_conditioned(bundle.manifest)
    check_encoder(bundle.manifest.latent)


def start_with(
    bundle: Bundle, settled: Settled, images: Sequence[Image], clip: Frames | None = None, edit: float = 0.0
) -> Start:
    """Places what a video is to start from.

    Args:
        bundle: that can start from something.
        settled: the video.
        images: at frames of it.
        clip: frames that it goes on from.
        edit: ratio of what may change; 0 = nothing.

    Raises:
        InputError: two fall on the same frame, or nothing is left to generate.
        OutOfRangeError: a frame that the video has not.
    """
    space, frames = bundle.manifest.latent, settled.latents.shape[2]
    pixels, placements, notes = [], [], []
    if clip is not None:
        pixels.append(fit(clip, settled.height, settled.width))
        placements.append(Placement(length=space.continued, edit_ratio=edit))
    for image in images:
        asked = latent_index(space, image.at, settled.frames)
        start = snapped(asked, frames, alignment(space))
        if start != asked:
            chunk, frame = space.frames.chunk_frames, space.frames.frames_of(start)
            notes.append(f"{image.name}: at frame {frame}, the nearest to {image.at} where {chunk} frames begin")
        placements.append(Placement(reference=len(pixels), start=start, edit_ratio=edit))
        pixels.append(fit(image.frames, settled.height, settled.width))
    _check_places(placements, frames, edit)
    return Start(tuple(pixels), tuple(placements), tuple(notes))


def _check_places(placements: list[Placement], frames: int, edit: float) -> None:
    taken = [start + index for p in placements for start in [p.start] for index in range(p.length)]
    twice = sorted({index for index in taken if taken.count(index) > 1})
    if twice:
        raise InputError(f"several of the images and the clip fall on latent frame {twice[0]}; give one for each place")
    if edit == 0 and set(range(frames)) <= set(taken):
        raise InputError(
            f"all {frames} latent frames would be given, and nothing generated; choose more --frames, or an --edit"
        )


def begin(start: Start, request: Request, settled: Settled, bundle: Bundle, backend: Backend) -> Request:
    """The request with the references in place, encoded.

    Raises:
        InputError: there is not the memory to encode them; nothing has run then.
    """
    known: Known = {}
    shapes = [pixels.shape for pixels in start.pixels]
    check_encoder_fit(
        request.tile, backend.device.free_nbytes(), lambda tile: encoder_memory(bundle, backend, shapes, tile, known)
    )
    noise = drawn(request.seed)
    references = [encode(bundle, backend, pixels, noise, request.tile) for pixels in start.pixels]
    return placed(request, settled.latents, references, start.placements, alignment(bundle.manifest.latent))


def begin_on_paper(start: Start, request: Request, settled: Settled, bundle: Bundle) -> Request:
    """A request of the same shapes with zeros for the references, to plan its memory."""
    space = bundle.manifest.latent
    channels, _, *inside = settled.latents.shape[1:]
    counts = [space.latent_frames(pixels.shape[1]) for pixels in start.pixels]
    references = [np.zeros((channels, count, *inside), np.float32) for count in counts]
    return placed(request, settled.latents, references, start.placements, alignment(space))
