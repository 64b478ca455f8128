"""A policy that decides what a test wrote down, and generations checked against the plain numpy loop."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.measured.easycache import EasyCache
from adacache_runtime.caching.policies.measured.fbcache import FBCache
from adacache_runtime.caching.policies.measured.teacache import TeaCache
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policy import (
    Context,
    Decision,
    Measurement,
    Needs,
    Observation,
    Run,
)
from adacache_runtime.pipeline import Pipeline
from tests.helpers.model.fake_model import request
from tests.helpers.model.plain import plain

TEACACHE = TeaCache(coefficients=(1, 0), threshold=0.5)


FBCACHE = FBCache(threshold=0.1)


EASYCACHE = EasyCache(threshold=0.6)


ADACACHE = AdaCache(codebook=[(0.05, 4), (0.3, 3), (1.0, 1)])


INTERVAL = FixedInterval(every=3)


@dataclass(frozen=True)
class Scripted:
    """A policy that decides what it was told, and notes the order in which it is asked and what it is shown."""

    needs: Needs
    decisions: Sequence[Decision]
    log: list[str] = field(default_factory=list)
    shown: list[tuple[int, tuple[Measurement, ...]]] = field(default_factory=list)

    def start(self, run: Run) -> int:
        return 0

    def decide(self, state: int, context: Context) -> tuple[Decision, int]:
        self.log.append("decide")
        return self.decisions[context.call - 1], context.call

    def observe(self, state: int, context: Context, measurements: Sequence[Measurement]) -> tuple[Observation, int]:
        self.log.append("observe")
        self.shown.append((context.call, tuple(measurements)))
        return {"metric": float(context.call)}, state


def words(text: str) -> list[Decision]:
    """Return decisions from letters: ``"CC CR"`` is to compute both groups, then to reuse the second one."""
    return [Decision(tuple(letter == "C" for letter in word)) for word in text.split()]


def close(given: Any, expected: Any) -> None:
    np.testing.assert_allclose(given, expected, rtol=0, atol=2e-5 * float(np.abs(expected).max()))


def follows(
    pipeline: Pipeline, granularity: str | None = None, extrapolates: bool = False, **options: Any
) -> list[Any]:
    """Check a generation against the plain loop's with the same decisions; return which calls were computed whole."""
    asked = request(**options, granularity=granularity, keep_calls=True)
    result = pipeline.generate(asked)
    assert result.calls is not None
    decisions = [call.compute for call in result.trace.calls]
    used = granularity or asked.policy.needs.granularity
    seen = plain(pipeline, asked, decisions, used, extrapolates)
    for given, expected in zip([*result.calls, result.latents], seen.latents, strict=True):
        close(given, expected)
    return [all(compute) for compute in decisions]
