"""The states of an image that some models attend to beside the text: how the image is prepared, encoded and checked.

An image is encoded once in a generation; all prompts and guidance branches share its states.

Source: diffusers, ``WanImageToVideoPipeline.encode_image``; transformers, ``CLIPImageProcessor``.
"""

import numpy as np

from adacache_engines.bundle.manifest import ImageRule, Manifest
from adacache_engines.contract.engine import Backend
from adacache_engines.errors import InputError
from adacache_runtime.chain import run_chain
from adacache_runtime.media.frames import Frames
from adacache_runtime.media.pictures import middle_square
from adacache_runtime.request import Request
from adacache_runtime.samplers.update import Floats


def can_encode_images(rule: ImageRule | None) -> bool:
    """Return whether a bundle can make the states of an image that its model takes; True where it takes none."""
    return rule is None or bool(rule.encoder_stages)


def encodes_image(manifest: Manifest, request: Request) -> bool:
    """Return whether a generation runs the image encoder."""
    return manifest.image is not None and request.image_states is None


def check_image_states(manifest: Manifest, request: Request) -> None:
    """Check that the states of an image that a model attends to are given, or can be made.

    Raises:
        InputError: there is neither an image nor its states, the bundle has no image encoder, the states or the part
            of the image that the encoder sees have another shape or numbers that are not finite, or the model takes
            none.
    """
    rule, given, square = manifest.image, request.image_states, request.image_square
    if rule is None:
        if given is not None or square is not None:
            raise InputError("this model attends to no states of an image: leave image_states and image_square out")
        return
    if square is not None and (square.shape != (rule.side, rule.side, 3) or square.dtype != np.uint8):
        raise InputError(
            f"image_square is an array {square.shape} of {square.dtype}; expected ({rule.side}, {rule.side}, 3) of"
            " uint8, 0 to 255 RGB"
        )
    if given is not None:
        expected = (rule.tokens, rule.width)
        if given.shape != expected:
            raise InputError(f"image_states have shape {given.shape}; expected (states, width), here {expected}")
        if not np.isfinite(given).all():
            raise InputError("image_states contain NaN or infinity")
    elif not request.images:
        raise InputError(
            "this model also attends to states of the image that the video starts from, and only its encoded video is"
            f" given: give image_states ({rule.tokens}, {rule.width}), too, or the image instead (--image FILE)"
        )
    elif not can_encode_images(rule):
        raise InputError(
            "this bundle has no image encoder, and the model attends to states of the image: add one with"
            " adacache-export BUNDLE --image-encoder DIR (a CLIP folder), or give the states of an encoder of your own"
            " in --latents FILE.npz (array image_states)"
        )


def image_states(rule: ImageRule, backend: Backend, square: Frames) -> Floats:
    """Return the states (1, tokens, width) of an image.

    Args:
        rule: rule of the bundle, with an encoder.
        backend: the backend that runs it.
        square: the part of the image that the encoder sees, (1, side, side, 3) RGB: see :func:`square_of`.
    """
    (states,) = run_chain(rule.encoder_stages, backend, {}, [{"pixels": normalised(rule, square)}])
    return states


def normalised(rule: ImageRule, square: Frames) -> Floats:
    """Return the pixels that an encoder takes, (1, 3, side, side), of those of an image, (1, side, side, 3) RGB."""
    mean, deviation = (np.array(colours, np.float32) for colours in (rule.mean, rule.deviation))
    values = ((square.astype(np.float64) * rule.scale).astype(np.float32) - mean) / deviation
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def square_of(rule: ImageRule, request: Request, image: Frames) -> Frames:
    """Return the part of an image that the encoder sees, (1, side, side, 3) RGB.

    Args:
        rule: rule of the bundle.
        request: the request, which may have it already.
        image: the image as it was read, (1, height, width, 3) RGB.
    """
    if request.image_square is not None:
        return request.image_square[None]
    return middle_square(image, rule.shorter, rule.side)
