"""The encoded video that some models take beside their latents: an image, grey frames behind it, and a mask.

The video is encoded once in a generation; all prompts and guidance branches share it, and latents and samplers know
nothing of it.

Source: diffusers, ``WanImageToVideoPipeline.prepare_latents``.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.latent_space import FrameRule
from adacache_engines.bundle.manifest import Manifest
from adacache_engines.contract.engine import Backend
from adacache_engines.errors import InputError
from adacache_runtime.request import Request
from adacache_runtime.samplers.update import Floats
from adacache_runtime.vae.encode import encode, most_likely


def check_video_condition(
    manifest: Manifest, request: Request, shape: Sequence[int], height: int, width: int, frames: int
) -> tuple[int, ...]:
    """Check what a video is to begin with, where the model takes it as an encoded video.

    Whether there is an image at all is checked with the request, not here.

    Args:
        manifest: manifest of the bundle.
        request: the request.
        shape: shape of the latents (prompts, channels, frames, height, width).
        height, width: size of the video in pixels.
        frames: number of frames of the video.

    Returns:
        The number of frames of each clip that is to be encoded: the whole video, or none where it is given encoded.

    Raises:
        InputError: more is given than one image that is the first frame, the latents are of another size than the
            image, or the encoded video has another shape or numbers that are not finite.
    """
    space, given = manifest.latent, request.video_condition
    if len(request.images) > 1 or any(request.image_at) or request.clip is not None or request.edit_ratio:
        raise InputError(
            "this model starts from one image, which is the first frame of the video: leave clips, edit ratios, further"
            " images and other frames for them out"
        )
    if given is None:
        size = (space.latent_frames(frames), height // space.spatial_factor, width // space.spatial_factor)
        if size != tuple(shape[2:]):
            raise InputError(
                f"the latents have (frames, height, width) {tuple(shape[2:])}, and the video that begins with the image"
                f" has {size}: ask for the frames and the size of the latents"
            )
        return (frames,)
    if request.images:
        raise InputError("an image and a video condition, which holds one that is encoded, are both given; give one")
    expected = (space.frames.stretch + space.channels, *shape[2:])
    if given.shape != expected:
        raise InputError(
            f"the video condition has shape {given.shape}; expected (channels, frames, height, width), here {expected}:"
            f" a mask of {space.frames.stretch} channels, then latents"
        )
    if not np.isfinite(given).all():
        raise InputError("the video condition contains NaN or infinity")
    return ()


def video_condition(bundle: Bundle, backend: Backend, image: Floats, frames: int, tile: int | None = None) -> Floats:
    """Encode a video that begins with an image and is grey from then on, chunk by chunk.

    Args:
        bundle: a bundle with an encoder.
        backend: the backend that runs it.
        image: pixels (3, 1, height, width), -1 to 1.
        frames: number of frames of the video.
        tile: side in pixels of the tiles by which larger frames are encoded; None = the bundle's.

    Returns:
        (1, stretch + channels, latent frames, latent height, latent width): the mask, then the most likely latents.
    """
    latents = encode(bundle, backend, image, most_likely, tile, frames)
    given = np.zeros(frames, np.float32)
    given[0] = 1
    mask = folded(given, bundle.manifest.latent.frames, latents.shape[1])
    every = np.broadcast_to(mask[:, :, None, None], (len(mask), *latents.shape[1:]))
    return np.concatenate([every, latents])[None]


def folded(of_frames: NDArray[np.float32], rule: FrameRule, latent_frames: int) -> NDArray[np.float32]:
    """Fold one number a frame (frames,) into one for each frame of a latent frame (stretch, latent frames).

    A first latent frame that stands for fewer frames has the number of its first frame in the channels to spare.
    """
    spare = latent_frames * rule.stretch - len(of_frames)
    whole = np.concatenate([np.repeat(of_frames[:1], spare), of_frames])
    return whole.reshape(latent_frames, rule.stretch).T
