"""A policy that measures nothing lets the device run: nothing comes back from it between two calls."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.contract.device import HostBuffer, HostDevice, HostReadback
from adacache_runtime.caching.policies.measured.easycache import EasyCache
from adacache_runtime.caching.policies.scheduled.delta_dit import DeltaDiT
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.listed import ListedCalls
from adacache_runtime.caching.policies.scheduled.magcache import MagCache
from adacache_runtime.caching.policies.wrappers import Extrapolate, LastCalls, MaxReuses, WarmUp
from adacache_runtime.caching.policy import Policy
from tests.helpers.model.fake_model import fake_pipeline, functions, request
from tests.helpers.model.plain import GROUPS

INTERVAL = FixedInterval(every=3)


@dataclass(frozen=True)
class Watched(HostBuffer):
    """Counts how often somebody reads it."""

    reads: list[int] = field(default_factory=list)

    def part(self, start: int, stop: int) -> "Watched":
        return replace(self, array=self.array[start:stop])

    def row(self, index: int) -> "Watched":
        return replace(self, array=self.array[index])

    def read(self) -> Any:
        self.reads.append(1)
        return super().read()


class NeverBack(HostReadback):
    def start(self) -> None:
        raise AssertionError("something is read back")

    def result(self) -> Any:
        raise AssertionError("something is read back")


@dataclass(frozen=True)
class Silent(HostDevice):
    reads: list[int] = field(default_factory=list)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> HostBuffer:
        return Watched(np.zeros(shape, dtype), self.reads)

    def readback(self, source: Any) -> HostReadback:
        return NeverBack(source)


UNMEASURED: list[tuple[Policy[Any], str]] = [
    *((INTERVAL, granularity) for granularity in GROUPS),
    *((Extrapolate(policy=INTERVAL), granularity) for granularity in GROUPS),
    (WarmUp(policy=ListedCalls(computed=(1,)), calls=2), "stack"),
    (LastCalls(policy=MaxReuses(policy=MagCache(ratios=(1, 1)), reuses=2), calls=2), "model"),
    (DeltaDiT(interval=(0, 5), pairs=(0, 0), sign=-1), "block"),
]


@pytest.mark.parametrize(("policy", "granularity"), UNMEASURED)
def test_nothing_is_read_back_for_a_policy_that_measures_nothing(tmp_path: Path, policy: Any, granularity: str) -> None:
    """Only latents, and whether they were ever spoilt, at the end; the trace is complete all the same."""
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    expected = pipeline.generate(request(policy=policy, granularity=granularity, steps=8))
    silent = Silent()
    pipeline.backend.device = silent
    calls = pipeline.calls(request(policy=policy, granularity=granularity, steps=8))
    records = []
    for _ in range(8):
        records.append(next(calls))
        assert silent.reads == []
    with pytest.raises(StopIteration) as end:
        next(calls)
    assert len(silent.reads) == 2
    np.testing.assert_array_equal(end.value.value.latents, expected.latents)
    assert [record.compute for record in records] == [record.compute for record in expected.trace.calls]
    assert [record.timestep for record in records] == [record.timestep for record in expected.trace.calls]
    assert all(record.observation == {} for record in records)


def test_a_policy_that_measures_reads_numbers_only(tmp_path: Path) -> None:
    """No tensor: each reading is a number a sample."""
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    sizes: list[tuple[int, ...]] = []

    @dataclass(frozen=True)
    class Noted(HostReadback):
        def result(self) -> Any:
            sizes.append(self.source.shape)
            return super().result()

    class Noting(Silent):
        def readback(self, source: Any) -> HostReadback:
            return Noted(source)

    pipeline.backend.device = Noting()
    records = list(pipeline.calls(request(policy=EasyCache(threshold=0.6), steps=8)))
    assert 2 < sum(record.computed for record in records) < 8
    assert set(sizes) == {(2,)}
    assert len(pipeline.backend.device.reads) == len(sizes) + 1
