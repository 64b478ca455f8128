"""Images and clips that a video contains: where they go, and their pixels at the video's size."""

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import LatentSpace, Manifest
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_runtime.conditioning.image_states import check_image_states
from adacache_runtime.conditioning.masks import check_conditioned
from adacache_runtime.conditioning.references import Placement, alignment, latent_index, mask_of, snapped
from adacache_runtime.media.frames import Frames
from adacache_runtime.media.pictures import read_image, read_last_frames
from adacache_runtime.request import Request
from adacache_runtime.vae.encode import check_encoder


@dataclass(frozen=True)
class GivenFrames:
    """Places of the images and the clip of a request, before any of them is read.

    Attributes:
        placements: where each goes, in latent frames.
        counts: number of frames of each, in the same order.
        notes: sentences for the user, such as an image that had to move to another frame.
    """

    placements: tuple[Placement, ...]
    counts: tuple[int, ...]
    notes: tuple[str, ...]


def place_given(manifest: Manifest, request: Request, frames: int, latent_frames: int) -> GivenFrames | None:
    """Place the images and the clip of a request; None where it has neither.

    Args:
        manifest: manifest of the bundle.
        request: the request.
        frames: number of frames of the video.
        latent_frames: number of latent frames of the video.

    Raises:
        InputError: the bundle cannot keep frames or has no encoder, two fall on the same latent frame, or nothing is
            left to generate.
        OutOfRangeError: the video has no such frame, or an image cannot be there; or the edit ratio is not 0 or more
            and below 1.
    """
    images, clip, space = request.images, request.clip, manifest.latent
    places = request.image_at or (0,) * len(images[:1])
    if len(places) != len(images):
        raise InputError(
            f"there are {len(images)} images and {len(places)} frames for them; give a frame for each image"
        )
    if not images and clip is None:
        return None
    check_conditioned(manifest)
    check_encoder(space)
    if request.mask is not None:
        raise InputError("a mask says already which latents are kept: leave it out, or the images and the clip")
    placements, counts, notes = [], [], []
    if clip is not None:
        placements.append(Placement(length=space.continued, edit_ratio=request.edit_ratio))
        counts.append(clip_frames(space))
    for number, (image, at) in enumerate(zip(images, places, strict=True)):
        asked = latent_index(space, at, frames)
        if asked and space.frames.chunk_frames is None:
            raise OutOfRangeError(
                f"{_name(image, number)}: at frame {at} it is not possible with this model, which codes a video as a "
                "whole; give it frame 0"
            )
        start = snapped(asked, latent_frames, alignment(space))
        if start != asked:
            frame, chunk = space.frames.frames_of(start), space.frames.chunk_frames
            notes.append(f"{_name(image, number)}: at frame {frame}, the nearest to {at} where {chunk} frames begin")
        placements.append(Placement(reference=len(counts), start=start, edit_ratio=request.edit_ratio))
        counts.append(1)
    _check_places(placements, latent_frames, request.edit_ratio)
    return GivenFrames(tuple(placements), tuple(counts), tuple(notes))


def check_images(manifest: Manifest, request: Request) -> None:
    """Check that a request has an image where the model starts from one, and none where it cannot have one.

    Raises:
        InputError: the image is missing; or the model takes none, or the bundle has no encoder of pixels, or none of
            the states that the model attends to.
    """
    starts_from_image = manifest.conditioning == "encoded-video"
    if request.images:
        if not starts_from_image:
            check_conditioned(manifest)
        check_encoder(manifest.latent)
    elif starts_from_image and request.video_condition is None:
        raise InputError("this model starts from an image, and none is given: give one with --image FILE (image=)")
    check_image_states(manifest, request)


def clip_frames(space: LatentSpace) -> int:
    """Return how many frames at the end of a clip a video begins with."""
    return space.frames.frames_of(space.continued)


def given_mask(space: LatentSpace, given: GivenFrames, samples: int, latent_frames: int) -> NDArray[np.float32]:
    """Return the mask (samples, latent frames) of given frames: 1 = generate, less = their edit ratio."""
    lengths = [space.latent_frames(count) for count in given.counts]
    mask = mask_of(given.placements, lengths, latent_frames, alignment(space))
    return np.tile(mask, (samples, 1))


def read_given(request: Request, space: LatentSpace) -> tuple[Frames, ...]:
    """Read the end of the clip and the images of a request, in the order of their placements.

    Returns:
        Arrays (frames, height, width, 3) uint8, each of its own size.

    Raises:
        InputError: a file cannot be read, an array has another shape, or the clip has too few frames.
    """
    clip = () if request.clip is None else (read_last_frames(request.clip, clip_frames(space)),)
    images = enumerate(request.images)
    return (*clip, *(read_image(image, _name(image, number)) for number, image in images))


def _name(image: object, number: int) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {number}"


def _check_places(placements: list[Placement], frames: int, edit_ratio: float) -> None:
    taken = [p.start + index for p in placements for index in range(p.length)]
    twice = sorted({index for index in taken if taken.count(index) > 1})
    if twice:
        raise InputError(f"several of the images and the clip fall on latent frame {twice[0]}; give one for each place")
    if edit_ratio == 0 and set(range(frames)) <= set(taken):
        raise InputError(
            f"all {frames} latent frames would be given, and nothing generated; choose more frames, or an edit ratio"
        )
