"""What generations on the host give, with which those of a faked GPU are compared to the bit."""

from pathlib import Path
from typing import Any

import numpy as np

from adacache_runtime.caching.policies.measured.adacache import AdaCache, MoReg
from adacache_runtime.caching.policies.measured.easycache import EasyCache
from adacache_runtime.caching.policies.measured.fbcache import FBCache
from adacache_runtime.caching.policies.measured.teacache import TeaCache
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.caching.policies.wrappers import Extrapolate, MaxReuses
from adacache_runtime.events import Denoised
from tests.helpers.model.fake_model import fake_pipeline, functions, request

ADACACHE = AdaCache(codebook=[(0.05, 4), (0.3, 3), (1.0, 1)], moreg=MoReg())
POLICIES = {"never": NeverReuse(), "adacache": ADACACHE, "interval": FixedInterval(every=3)}
WITHIN: dict[str, Any] = {
    "teacache": TeaCache(coefficients=(1, 0), threshold=0.5),
    "fbcache": FBCache(threshold=0.1),
    "easycache": EasyCache(threshold=0.6),
    "extrapolated": Extrapolate(policy=ADACACHE),
    "extrapolated model": Extrapolate(policy=MaxReuses(policy=EasyCache(threshold=0.8), reuses=2)),
}


def expected(tmp_path: Path, **options: Any) -> Denoised:
    """Return what the same request gives on the host."""
    return fake_pipeline(tmp_path / "host", functions())[0].generate(request(**options))


def same(one: Denoised, other: Denoised) -> None:
    np.testing.assert_array_equal(one.latents, other.latents)
    assert [call.compute for call in one.trace.calls] == [call.compute for call in other.trace.calls]
    np.testing.assert_array_equal(
        [call.observation.get("distance") or 0 for call in one.trace.calls],
        [call.observation.get("distance") or 0 for call in other.trace.calls],
    )
