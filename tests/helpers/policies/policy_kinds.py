"""A policy of every kind, what it runs on, and wrappers around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.measured.easycache import EasyCache
from adacache_runtime.caching.policies.measured.fbcache import FBCache
from adacache_runtime.caching.policies.measured.teacache import TeaCache
from adacache_runtime.caching.policies.scheduled.delta_dit import DeltaDiT
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.listed import ListedCalls
from adacache_runtime.caching.policies.scheduled.magcache import MagCache
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.caching.policies.scheduled.pab import PAB
from adacache_runtime.caching.policies.scheduled.tgate import TGate
from adacache_runtime.caching.policies.wrappers import Extrapolate, LastCalls, MaxReuses, WarmUp
from adacache_runtime.caching.policy import Measure, Measurement, Policy, Run
from adacache_runtime.caching.simulate import Unchanged
from tests.helpers.policies.policy_runs import places

BLOCKS = tuple(f"{kind}.{index:02}" for index in range(2) for kind in ("spatial", "temporal"))


MODULES = tuple(f"{block}.{part}" for block in BLOCKS for part in ("attn", "cross", "mlp"))


KINDS: dict[str, tuple[Policy[Any], tuple[str, ...]]] = {
    "never": (NeverReuse(), BLOCKS),
    "interval": (FixedInterval(every=5), BLOCKS),
    "listed": (ListedCalls(computed=(1,)), ("all",)),
    "magcache": (MagCache(ratios=(1, 0.99, 0.9), max_reuses=9), BLOCKS),
    "adacache": (AdaCache(codebook=((0.2, 7), (0.5, 3), (1.0, 1))), BLOCKS),
    "teacache": (TeaCache(coefficients=(1, 0), threshold=1.5), ("all",)),
    "fbcache": (FBCache(threshold=0.9), BLOCKS),
    "easycache": (EasyCache(threshold=2.5), ("embed to final",)),
    "pab": (PAB(window=(0, 1001), spatial=2, temporal=3, cross=5, mlp_starts=(997,), mlp_blocks=(0, 1)), MODULES),
    "tgate": (TGate(window=(0, 6), gap=3, gate=4), MODULES),
    "delta-dit": (DeltaDiT(interval=(0, 20), pairs=(0, 0)), BLOCKS),
}


ONES = {"magnitude": (1.0,), "new_magnitude": (1.0,)}


Wrap = tuple[str, int]


WRAPS = st.lists(st.tuples(st.sampled_from(("warm-up", "last-calls", "max-reuses")), st.integers(1, 5)), max_size=4)


CHANGES = st.integers(0, 99).map(lambda seed: np.random.default_rng(seed).random(20).tolist())


@dataclass(frozen=True)
class Numbers(Unchanged):
    """Measurements in which every tensor changes by the same number in a call."""

    changes: Sequence[float]

    def measurement(self, measure: Measure, earlier: int, call: int) -> Measurement:
        return Measurement(measure.site, {**ONES, "change": (self.changes[call - 1],)})


def wrapped(policy: Policy[Any], wraps: Sequence[Wrap]) -> Any:
    for name, number in wraps:
        policy = {
            "warm-up": lambda policy, number: WarmUp(policy=policy, calls=number),
            "last-calls": lambda policy, number: LastCalls(policy=policy, calls=number),
            "max-reuses": lambda policy, number: MaxReuses(policy=policy, reuses=number),
            "extrapolate": lambda policy, _: Extrapolate(policy=policy),
        }[name](policy, number)
    return policy


def run_of(kind: str, calls: int) -> Run:
    names = KINDS[kind][1]
    return Run(calls, len(names), 1, places(*names), tuple(1000.0 - call for call in range(calls)))
