"""Measure stages and calls of several backends in turn, so that a slow moment of the machine meets all of them."""

import itertools
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Graph, Manifest
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.contract.device import Array, Buffer, Call
from adacache_engines.contract.engine import Backend, Engine
from adacache_engines.errors import AdaCacheError, EngineError
from adacache_runtime.caching.policies.never import NeverReuse
from adacache_runtime.caching.policy import Policy
from adacache_runtime.events import Denoised
from adacache_runtime.memory.estimate import KINDS
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.reports.flops import flops, work
from adacache_runtime.request import Request
from adacache_runtime.trace import CallRecord
from adacache_tune.profiling.subjects import example
from tools.gpu.contenders import NO_GRAPHS, Contenders, Skips, with_reason
from tools.speed.calls import EVERY_THIRD, WARM_UP
from tools.speed.timing import Spread

TOO_SLOW_S = 10.0  # of one call of one stage: something runs on the processor that should not
STAGE_WARM_UP = 3
STAGE_BATCH = 5  # calls between two marks' waits, so that the GPU does not wait for the host


def examples(graph: Graph, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Array]:
    """Return values for all inputs of a graph."""
    values = example(graph, sizes, seed)
    return {spec.name: values[spec.name].astype(NUMPY_DTYPES[spec.dtype]) for spec in graph.inputs}


def bound(
    engine: Engine, backend: Backend, values: Mapping[str, Array], sizes: Mapping[str, int]
) -> tuple[Call, dict[str, Buffer]]:
    """Bind an engine to new buffers and fill its inputs; return the call and the buffers."""
    specs = (*engine.graph.inputs, *engine.graph.outputs)
    buffers = {spec.name: backend.device.empty(spec.shape(sizes), NUMPY_DTYPES[spec.dtype]) for spec in specs}
    for name, value in values.items():
        buffers[name].write(value)
    return engine.bind(buffers), buffers


def distinct(graphs: Sequence[Graph]) -> list[Graph]:
    """Return one graph of each file, and one block of each kind and set of outputs: the others take as long."""
    found: dict[tuple[str, tuple[str, ...]], Graph] = {}
    for graph in graphs:
        found.setdefault((graph.name.split(".")[0], tuple(spec.name for spec in graph.outputs)), graph)
    return list(found.values())


def tflop_per_s(flop: int, milliseconds: float) -> float | None:
    """Return the rate; None where no operations were counted."""
    return flop / milliseconds / 1e9 if flop else None


def measure_stages(
    contenders: Contenders, bundle: Bundle, sizes: Mapping[str, int], rounds: int, skipped: Skips
) -> dict[str, Any]:
    """Return each stage's operations, and for each backend the spread of its time and the rate at the median."""
    measured = {}
    counts = {stage.graph.name: flops(stage.flops or (), sizes) for stage in bundle.manifest.stages}
    for graph in distinct(bundle.manifest.loop_graphs()):
        flop = counts.get(graph.name, 0)  # arithmetic graphs have none
        values = examples(graph, sizes)
        ready: dict[str, _Stage] = {}
        for name, backend in contenders.items():
            if name.endswith(NO_GRAPHS):  # graphs are of several engines: one alone runs the same
                continue

            def prepare(name: str = name, backend: Backend = backend) -> None:
                ready[name] = _Stage(graph, backend, values, sizes)  # noqa: B023 - called within the loop

            with_reason(skipped, f"{graph.name} on {name}", prepare)
        for _ in range(rounds):
            for stage in ready.values():
                stage.measure()
        rows = {}
        for name, stage in ready.items():
            spread = Spread.of(stage.times_ms)
            rows[name] = {"ms": asdict(spread), "tflop_per_s": tflop_per_s(flop, spread.median)}
        label = graph.name.split(".")[0] + ("" if len(graph.outputs) == 1 or "." not in graph.name else " with probe")
        measured[label] = {"gflop": flop / 1e9, "backends": rows}
    return measured


class _Stage:
    """A stage on one backend, warmed up.

    Raises:
        EngineError: the stage does not run, or takes far too long.
    """

    def __init__(self, graph: Graph, backend: Backend, values: Mapping[str, Array], sizes: Mapping[str, int]) -> None:
        self._device = backend.device
        self._call, self._buffers = bound(backend.load(graph), backend, values, sizes)
        self.times_ms: list[float] = []
        self._call()  # compiles, allocates
        self._wait()
        start = time.perf_counter()
        for _ in range(STAGE_WARM_UP):
            self._call()
            self._wait()
            if time.perf_counter() - start > TOO_SLOW_S:
                raise EngineError(f"a call takes more than {TOO_SLOW_S:.0f} s; is a part of it done on the processor?")

    def _wait(self) -> None:
        mark = self._device.mark()
        self._device.milliseconds(mark, mark)

    def measure(self) -> None:
        marks = [self._device.mark()]
        for _ in range(STAGE_BATCH):
            self._call()
            marks.append(self._device.mark())
        pairs = itertools.pairwise(marks)
        self.times_ms += [self._device.milliseconds(start, stop) for start, stop in pairs]


@dataclass
class _Generation:
    """A generation that advances a call at a time; between two calls nothing of it is under way."""

    calls: Generator[CallRecord, None, Denoised]
    wall_s: float = 0.0
    records: list[CallRecord] = field(default_factory=list)

    def advance(self) -> bool:
        """Run one call; return False when none was left."""
        start = time.perf_counter()
        record = next(self.calls, None)
        self.wall_s += time.perf_counter() - start
        if record is not None:
            self.records.append(record)
        return record is not None

    def device_ms(self, computed: bool) -> list[float]:
        return [sum(r.engine_ms.values()) for r in self.records[WARM_UP:] if r.computed == computed]

    def wall_ms(self, computed: bool) -> list[float]:
        return [r.wall_ms for r in self.records[WARM_UP:] if r.computed == computed]


def load(
    contenders: Contenders, bundle: Bundle, request: Request, skipped: Skips
) -> tuple[dict[str, Pipeline], dict[str, Any]]:
    """Return a pipeline for each backend, warmed up by a short generation, and its memory in MB by kind."""
    pipelines: dict[str, Pipeline] = {}
    memory = {}
    for name, backend in contenders.items():

        def warm(name: str = name, backend: Backend = backend) -> None:
            free = [backend.device.free_nbytes() or 0]
            pipeline = Pipeline(bundle, backend)
            free.append(backend.device.free_nbytes() or 0)
            running, changed = free[-1], replace(request, policy=EVERY_THIRD, steps=2 * WARM_UP + 3)
            for _ in pipeline.calls(changed):
                running = min(running, backend.device.free_nbytes() or 0)
            pipelines[name] = pipeline
            memory[name] = _memory(pipeline, changed, free[0] - free[1], free[1] - running)

        with_reason(skipped, f"calls on {name}", warm)
    return pipelines, memory


def _memory(pipeline: Pipeline, request: Request, loaded: int, running: int) -> dict[str, Any]:
    """Return MB by kind, measured where the kind says so, else estimated."""
    plan = pipeline.prepare(request).memory
    planned = {text: getattr(plan, kind) for kind, text in KINDS.items()}
    measured = {"loading, measured": loaded, "running, measured": running}
    return {text: None if nbytes is None else nbytes / 1e6 for text, nbytes in (measured | planned).items()}


def _advanced(name: str, run: _Generation, runs: dict[str, Any], skipped: Skips) -> bool:
    """Return whether more calls may follow; a backend that fails is left out, and its memory is freed."""
    try:
        return run.advance()
    except AdaCacheError as error:
        skipped.append({"what": f"calls on {name}", "why": str(error)})
        del runs[name]
        return False


def measure_calls(
    pipelines: Mapping[str, Pipeline],
    manifest: Manifest,
    request: Request,
    sizes: Mapping[str, int],
    skipped: Skips,
) -> dict[str, Any]:
    """Run a generation without reuse and one with it on each backend, all in turn, call by call."""
    policies: dict[str, Policy[Any]] = {"never": NeverReuse(), "reuse": EVERY_THIRD}
    runs = {
        name: {key: _Generation(pipeline.calls(replace(request, policy=policy))) for key, policy in policies.items()}
        for name, pipeline in pipelines.items()
    }
    running = [(name, run) for name, pair in runs.items() for run in pair.values()]
    while running:
        running = [(name, run) for name, run in running if name in runs and _advanced(name, run, runs, skipped)]
    counted = work(manifest, sizes)
    flop = counted.full if counted else 0
    measured = {}
    for name, pair in runs.items():
        never, reuse = pair["never"], pair["reuse"]
        computed = sum(record.computed for record in reuse.records)
        full = Spread.of(never.device_ms(True))
        ideal = len(reuse.records) / computed
        measured[name] = {
            "full_ms": asdict(full),
            "full_wall_ms": asdict(Spread.of(never.wall_ms(True))),
            "tflop_per_s": tflop_per_s(flop, full.median) if full.median else None,
            "cached_ms": asdict(Spread.of(reuse.device_ms(False))),
            "cached_wall_ms": asdict(Spread.of(reuse.wall_ms(False))),
            "calls": len(reuse.records),
            "computed": computed,
            "never_s": never.wall_s,
            "adacache_s": reuse.wall_s,
            "speed_up": never.wall_s / reuse.wall_s,
            "efficiency": never.wall_s / reuse.wall_s / ideal,
        }
    return {"tflop": flop / 1e12, "backends": measured}
