"""Requests with random text, which need no text encoder: short ones for checks, and one of a given size to measure."""

from typing import Any

import numpy as np

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.shape_profiles import parse_profile
from adacache_runtime.caching.policy import Policy
from adacache_runtime.request import Captions, Request


def random_captions(bundle: Bundle, prompts: int = 1, seed: int = 0) -> Captions:
    """Return seeded random text of the longest length that the bundle takes."""
    rule = bundle.manifest.text
    states = np.random.default_rng(seed).standard_normal((prompts, rule.max_length, rule.width), np.float32)
    return Captions(states, np.ones((prompts, rule.max_length), np.bool_))


def small_request(bundle: Bundle, steps: int, policy: Policy[Any], seed: int = 0) -> Request:
    """Return a request for the bundle's default video that keeps the latents before every call."""
    return Request(captions=random_captions(bundle, seed=seed), steps=steps, policy=policy, seed=seed, keep_calls=True)


def sized_request(bundle: Bundle, size: str, steps: int) -> Request:
    """Return a request of a shape profile's usual size, such as ``480p:2s``."""
    (width, height), frames, prompts = parse_profile(bundle.manifest, size)[1]
    return Request(captions=random_captions(bundle, prompts), height=height, width=width, frames=frames, steps=steps)
