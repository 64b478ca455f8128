"""Measure the calls of the denoiser through the loop that users run."""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.caching.policy import Granularity
from adacache_runtime.events import Denoised
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.trace import CallRecord
from tools.speed.timing import Spread, TimedBackend

# measures at every computed call as any codebook does, and then always waits as long: the same calls on any machine
EVERY_THIRD = AdaCache(codebook=((1.0, 3),))
WARM_UP = 2  # calls of a generation that touch new memory


@dataclass
class _Run:
    """A generation that advances a call at a time."""

    calls: Generator[CallRecord, None, Denoised]
    wall_s: float = 0.0
    engine_s: float = 0.0
    records: list[CallRecord] = field(default_factory=list)

    def advance(self, backend: TimedBackend) -> bool:
        """Run one call; return False when none was left."""
        start, inside = time.perf_counter(), backend.seconds
        record = next(self.calls, None)
        self.wall_s += time.perf_counter() - start
        self.engine_s += backend.seconds - inside
        if record is not None:
            self.records.append(record)
        return record is not None

    @property
    def computed(self) -> int:
        return sum(record.computed for record in self.records)

    def walls_ms(self, computed: bool) -> list[float]:
        return [record.wall_ms for record in self.records[WARM_UP:] if record.computed == computed]


@dataclass
class _Runs:
    never: list[_Run] = field(default_factory=list)
    stack: list[_Run] = field(default_factory=list)
    block: list[_Run] = field(default_factory=list)


@dataclass(frozen=True)
class CallCosts:
    """Ratios of times, and the median full call that they refer to."""

    reuse: dict[Granularity, Spread]
    overhead: Spread
    efficiency: Spread
    full_call_ms: Spread
    calls: int
    computed: int


def measure_calls(
    pipeline: Pipeline, backend: TimedBackend, request: Request, repetitions: int, on_call: Callable[[], None]
) -> CallCosts:
    """Measure generations without reuse, with reuse by stack and with reuse by block, call by call in turn.

    A machine that slows down does so for all three.
    """

    def begin(granularity: Granularity | None) -> _Run:
        policy = EVERY_THIRD if granularity else NeverReuse()
        return _Run(pipeline.calls(replace(request, policy=policy, granularity=granularity or "stack")))

    runs = _Runs()
    for _ in range(repetitions):
        group = [begin(None), begin("stack"), begin("block")]
        for run, kind in zip(group, (runs.never, runs.stack, runs.block), strict=True):
            kind.append(run)
        while group:
            group = [run for run in group if run.advance(backend)]
            for _ in group:
                on_call()

    def reused(cached: list[_Run]) -> Spread:
        full = Spread.of([ms for one in cached for ms in one.walls_ms(True)]).median
        return Spread.of([ms / full for one in cached for ms in one.walls_ms(False)])

    full_ms = Spread.of([ms for one in runs.never for ms in one.walls_ms(True)])
    first = runs.stack[0]
    ideal = len(first.records) / first.computed
    outside_ms = [
        1e3 * (one.wall_s - one.engine_s) / len(one.records) for one in (*runs.never, *runs.stack, *runs.block)
    ]
    pairs = zip(runs.never, runs.stack, strict=True)
    return CallCosts(
        {"stack": reused(runs.stack), "block": reused(runs.block)},
        Spread.of([ms / full_ms.median for ms in outside_ms]),
        Spread.of([never.wall_s / stack.wall_s / ideal for never, stack in pairs]),
        full_ms,
        len(first.records),
        first.computed,
    )
