"""Describe everything that measured numbers depend on: numbers are used again only where all of it is the same."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from pydantic import BaseModel

from adacache_engines.bundle.files import Bundle
from adacache_runtime.caching.policy import Policy
from adacache_runtime.media.frames import ImageSource
from adacache_runtime.media.pictures import read_image
from adacache_tune.machine import machine


def description(policy: Policy[Any]) -> Any:
    """Return a policy as JSON."""
    return policy.model_dump(mode="json") if isinstance(policy, BaseModel) else repr(policy)


def digest_of(images: Sequence[ImageSource]) -> str | None:
    """Return a digest of the pixels of images; None where there are none.

    Raises:
        InputError: a file cannot be read, or it is no image.
    """
    if not images:
        return None
    pixels = (read_image(image) for image in images)
    return hashlib.sha256(b"".join(str(one.shape).encode() + one.tobytes() for one in pixels)).hexdigest()


def identity(
    bundle: Bundle, backend: str, policies: Mapping[str, Policy[Any]], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that the numbers of a prompt and seed depend on, as JSON.

    Args:
        bundle: the bundle that runs. Its presets and plans do not count: policies are described, and plans compute the
            same as graphs.
        backend: name of the backend that runs it.
        policies: policies by label.
        asked: settings of each generation, and optional measurements, as JSON.
    """
    content = bundle.manifest.model_dump_json(exclude={"policies", "plans"})
    here = machine(on_gpu=False)
    return {
        "version": metadata.version("adacache-export"),
        "bundle": hashlib.sha256(content.encode()).hexdigest(),
        "backend": backend,
        "processor": f"{here['processor']}, {here['cores']} cores",
        "policies": {label: description(policy) for label, policy in policies.items()},
        **asked,
    }
