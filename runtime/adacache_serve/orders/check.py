"""The check of an order, which turns it into a request to the runtime. A refusal names the field that caused it."""

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Manifest
from adacache_engines.bundle.video_sizes import frames_of, size_of
from adacache_engines.errors import AdaCacheError, BundleError, InputError
from adacache_runtime.caching.policy import Policy
from adacache_runtime.caching.presets import PRESETS, policy_from
from adacache_runtime.checking import check as check_request
from adacache_runtime.conditioning.given_frames import check_images
from adacache_runtime.conditioning.image_states import can_encode_images
from adacache_runtime.media.frames import Frames
from adacache_runtime.request import Request
from adacache_runtime.settled import Settled, settle
from adacache_runtime.text.prompts import read_text
from adacache_serve.orders.schema import CreateVideo
from adacache_serve.settings import Settings

POLICY = re.compile(r"([A-Za-z0-9_.-]+)((?:\+[a-z-]+(?:=[0-9.]+)?)*)", re.ASCII)
DRAWN = 2**53  # larger seeds are not exact in JavaScript
ANY_IMAGE = np.zeros((1, 1, 1, 3), np.uint8)  # in place of one that is not decoded yet


class FieldError(InputError):
    """A field of an order is not possible.

    Attributes:
        field: name of the field; None = no single field is to blame.
    """

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message)
        self.field = field


def check_servable(folder: Path, manifest: Manifest) -> None:
    """Check that a bundle turns prompts into videos.

    Raises:
        InputError: the bundle in this folder has no text encoder, no decoder, or no image encoder although its model
            attends to states of an image.
    """
    if not manifest.text.encoder_stages:
        raise InputError(f"{folder} has no text encoder: add one with adacache-export {folder} --text-encoder DIR")
    if not can_encode_images(manifest.image):
        raise InputError(f"{folder} has no image encoder: add one with adacache-export {folder} --image-encoder DIR")
    if manifest.latent.decoder == "none":
        raise InputError(f"{folder} has no decoder: add one with adacache-export {folder} --vae DIR")


def with_seed(order: CreateVideo) -> CreateVideo:
    """Draw a seed where an order has none, so that another attempt at it makes the same video."""
    return order if order.seed is not None else order.model_copy(update={"seed": secrets.randbelow(DRAWN)})


def check(order: CreateVideo, bundle: Bundle, settings: Settings, image: bool = False) -> Settled:
    """Check an order; no noise is drawn, nothing large is allocated, and no engine is needed.

    Args:
        order: the client's order.
        bundle: the bundle that it is for.
        settings: the server's limits.
        image: whether the order has an image. Where it goes is checked, and not what it is.

    Returns:
        The order with every default filled in, such as the size that its image is to have.

    Raises:
        FieldError: the order is not possible; names the field, and says what is possible.
        BundleError: a file of the bundle cannot be read now, which is not the order's fault.
    """
    request = request_of(order, bundle, settings, ANY_IMAGE if image else None)
    with _blaming("image"):
        check_images(bundle.manifest, request)
    try:
        return check_request(bundle, request).settled
    except BundleError:
        raise
    except AdaCacheError as error:
        raise FieldError(_culprit(order, bundle, image), str(error)) from error


def request_of(order: CreateVideo, bundle: Bundle, settings: Settings, image: Frames | None = None) -> Request:
    """Return the request that an order makes.

    Args:
        order, bundle, settings: as of :func:`check`.
        image: the image of the order, (1, height, width, 3) RGB, or as
            :func:`adacache_serve.orders.images.image_of_order` returns it; None = no image.

    Raises:
        FieldError: a field is not possible, or exceeds a limit of the server.
    """
    request = Request(prompts=(order.prompt,))
    for field, apply in _FIELDS.items():
        with _blaming(field):
            request = apply(request, order, bundle.manifest)
    _check_limits(request, bundle.manifest, settings)
    if image is None:
        return request
    given: dict[str, Any] = {"images": (image[0],), "image_at": (order.image_at,)}
    if len(image) > 1 and (rule := bundle.manifest.image) is not None:
        usual = bundle.manifest.video
        height, width = request.height or usual.height, request.width or usual.width
        given |= {"images": (image[0, :height, :width],), "image_square": image[1, : rule.side, : rule.side]}
    return replace(request, **given)


def _check_limits(request: Request, manifest: Manifest, settings: Settings) -> None:
    """Check the server's limits, before anything of that size is made."""
    usual = manifest.video
    height, width, frames = request.height or usual.height, request.width or usual.width, request.frames or usual.frames
    if (pixels := frames * height * width) > settings.max_pixels:
        raise FieldError(
            "size",
            f"{frames} frames of {width}x{height} have {pixels} pixels, and this server allows at most "
            f"{settings.max_pixels}; choose a smaller size or fewer seconds",
        )
    if request.steps and request.steps > settings.max_steps:
        raise FieldError(
            "steps", f"{request.steps} steps are too many: this server allows at most {settings.max_steps}"
        )


def _culprit(order: CreateVideo, bundle: Bundle, image: bool) -> str | None:
    """Return the field with which a refused order is refused, adding its fields to the defaults one by one."""
    request = Request(prompts=(order.prompt,))
    for field, apply in _FIELDS.items():
        request = apply(request, order, bundle.manifest)
        try:
            settled = settle(bundle, request)
        except AdaCacheError:
            return field
    try:
        read_text(bundle, request)
    except AdaCacheError:
        return "prompt"
    if not image:
        return None
    return "image" if settled.latent_shape[2] == 1 else "image_at"


def _size(request: Request, order: CreateVideo, manifest: Manifest) -> Request:
    if order.size is None and order.aspect is None:
        return request
    if order.size is not None:
        size_of(manifest, order.size)  # what it refuses is not the aspect's fault
    try:
        width, height = size_of(manifest, order.size, aspect=order.aspect)
    except InputError as error:
        raise FieldError("aspect", str(error)) from error
    return replace(request, height=height, width=width)


def _frames(request: Request, order: CreateVideo, manifest: Manifest) -> Request:
    if order.seconds is None:
        return replace(request, frames=order.frames)
    if order.frames is not None:
        raise InputError("seconds and frames are both given; give one of them")
    return replace(request, frames=frames_of(manifest, f"{order.seconds:.6f}".rstrip("0").rstrip(".") + "s"))


def policy_of(choice: str, manifest: Manifest) -> Policy[Any]:
    """Return a preset by its name, with wrappers; unlike on the command line, files and modules cannot be named.

    Raises:
        InputError: there is no preset of this name; lists those that there are.
    """
    match = POLICY.fullmatch(choice)
    known = {*PRESETS, *manifest.policies}
    if not match or match.group(1) not in known:
        raise InputError(f"policy {choice!r} is unknown; choose one of {', '.join(sorted(known))}")
    return policy_from(choice, manifest.policies)


def _negative(request: Request, order: CreateVideo, _manifest: Manifest) -> Request:
    return replace(request, negative_prompts=(order.negative_prompt,)) if order.negative_prompt else request


_FIELDS: Mapping[str, Callable[[Request, CreateVideo, Manifest], Request]] = {
    "prompt": lambda request, _order, _manifest: request,
    "size": _size,
    "seconds": _frames,
    "seed": lambda request, order, _manifest: replace(request, seed=order.seed or 0),
    "steps": lambda request, order, _manifest: replace(request, steps=order.steps),
    "sampler": lambda request, order, _manifest: replace(request, sampler=order.sampler),
    "guidance": lambda request, order, _manifest: replace(request, guidance=order.guidance),
    "guidance_2": lambda request, order, _manifest: replace(request, guidance_2=order.guidance_2),
    "negative_prompt": _negative,
    "policy": lambda request, order, manifest: replace(request, policy=policy_of(order.policy, manifest)),
}


@contextmanager
def _blaming(field: str) -> Iterator[None]:
    """Blame this field for errors that are raised inside."""
    try:
        yield
    except (FieldError, BundleError):
        raise
    except AdaCacheError as error:
        raise FieldError(field, str(error)) from error
