"""Videos that a worker makes before it accepts jobs."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.settled import settle
from adacache_runtime.vae.encode import can_encode

MEASURING = AdaCache(codebook=((1.0, 2),))  # computes the first two of five steps, and reuses the third
WARM_UP_STEPS = 5


def warm_ups(pipeline: Pipeline) -> Iterator[Request]:
    """Yield requests for short videos that use everything that clients' videos use.

    They run every stage in full and reused, the signals of policies, and the encoder of images.
    """
    manifest = pipeline.bundle.manifest
    policy = MEASURING if manifest.sites("default") else FixedInterval(every=2)
    space = manifest.latent
    black = np.zeros((space.spatial_factor, space.spatial_factor, 3), np.uint8)
    request = Request(prompts=("warm-up",), steps=WARM_UP_STEPS, policy=policy)
    if manifest.conditioning == "encoded-video":
        request = replace(request, images=(black,))
    yield request
    shape = settle(pipeline.bundle, request).latent_shape
    if manifest.conditioning == "kept-frames" and can_encode(space) and shape[2] > 1:
        yield Request(prompts=("warm-up",), steps=1, images=(black,))
