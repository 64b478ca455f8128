"""Measure stages and calls of several backends in turn, so that a slow moment of the machine meets all of them."""

import itertools
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Graph, Manifest
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.contract.device import Array, Buffer, Call
from adacache_engines.contract.engine import Backend, Engine
from adacache_engines.errors import EngineError
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.caching.policy import Policy
from adacache_runtime.events import Denoised
from adacache_runtime.memory.estimate import KINDS
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.reports.flops import flops, work
from adacache_runtime.request import Request
from adacache_runtime.trace import CallRecord
from adacache_tune.profiling.subjects import example
from tools.gpu.contenders import Contenders, succeeds
from tools.gpu.phases import NO_GRAPHS
from tools.gpu.running.results import Report
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
    contenders: Contenders, bundle: Bundle, sizes: Mapping[str, int], rounds: int, report: Report
) -> None:
    """Measure each stage: its operations, and for each backend the spread of its time and the rate at the median.

    The report gets ``stages``, stage by stage.
    """
    measured = report.told["stages"] = {}
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

            succeeds(report, f"{graph.name} on {name}", prepare)
        for _ in range(rounds):
            for name in list(ready):
                if not succeeds(report, f"{graph.name} on {name}", ready[name].measure):
                    del ready[name]
        rows = {}
        for name, stage in ready.items():
            spread = Spread.of(stage.times_ms)
            rows[name] = {"ms": asdict(spread), "tflop_per_s": tflop_per_s(flop, spread.median)}
        label = graph.name.split(".")[0] + ("" if len(graph.outputs) == 1 or "." not in graph.name else " with probe")
        measured[label] = {"gflop": flop / 1e9, "backends": rows}
        report.keep()


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
    done: bool = False

    def advance(self) -> bool:
        """Run one call; return False when none was left."""
        start = time.perf_counter()
        record = next(self.calls, None)
        self.wall_s += time.perf_counter() - start
        if record is None:
            self.done = True
        else:
            self.records.append(record)
        return not self.done


def load(contenders: Contenders, bundle: Bundle, request: Request, report: Report) -> dict[str, Pipeline]:
    """Return a pipeline for each backend, warmed up by a short generation; the report gets ``memory_mb`` by kind."""
    pipelines: dict[str, Pipeline] = {}
    memory = report.told["memory_mb"] = {}
    for name, backend in contenders.items():

        def warm(name: str = name, backend: Backend = backend) -> None:
            free = [backend.device.free_nbytes() or 0]
            pipeline = Pipeline(bundle, backend)
            free.append(backend.device.free_nbytes() or 0)
            running, changed = free[-1], replace(request, policy=EVERY_THIRD, steps=2 * WARM_UP + 3)
            for _ in pipeline.calls(changed):
                running = min(running, backend.device.free_nbytes() or 0)
            memory[name] = _memory(pipeline, changed, free[0] - free[1], free[1] - running)
            pipelines[name] = pipeline

        succeeds(report, f"calls on {name}", warm)
        report.keep()
    return pipelines


def _memory(pipeline: Pipeline, request: Request, loaded: int, running: int) -> dict[str, Any]:
    """Return MB by kind, measured where the kind says so, else estimated."""
    plan = pipeline.prepare(request).memory
    planned = {text: getattr(plan, kind) for kind, text in KINDS.items()}
    measured = {"loading, measured": loaded, "running, measured": running}
    return {text: None if nbytes is None else nbytes / 1e6 for text, nbytes in (measured | planned).items()}


def measure_calls(
    pipelines: Mapping[str, Pipeline], manifest: Manifest, request: Request, sizes: Mapping[str, int], report: Report
) -> None:
    """Run a generation without reuse and one with it on each backend, all in turn, call by call.

    The report gets ``calls``, after each turn as far as they are known; a backend that fails is left out.

    Raises:
        EngineError: no backend came to the end.
    """
    policies: dict[str, Policy[Any]] = {"never": NeverReuse(), "reuse": EVERY_THIRD}
    runs = {
        name: {key: _Generation(pipeline.calls(replace(request, policy=policy))) for key, policy in policies.items()}
        for name, pipeline in pipelines.items()
    }
    counted = work(manifest, sizes)
    flop = counted.full if counted else 0
    advancing = list(runs)
    while advancing:
        for name in tuple(advancing):
            more: list[bool] = []
            pair = runs[name].values()
            if not succeeds(report, f"calls on {name}", lambda pair=pair, more=more: more.extend(_advanced(pair))):  # type: ignore[misc]
                del runs[name]
            if not any(more):
                advancing.remove(name)
        measured = {name: _measured(pair["never"], pair["reuse"], flop) for name, pair in runs.items()}
        report.told["calls"] = {"tflop": flop / 1e12, "backends": measured}
        report.keep()
    if not runs:
        raise EngineError("no backend could be measured; the failures above say why")


def _advanced(runs: Iterable[_Generation]) -> list[bool]:
    """Run one call of each generation; tell for each whether there was one."""
    return [run.advance() for run in runs]


def _measured(never: _Generation, reuse: _Generation, flop: int) -> dict[str, Any]:
    """Return what a backend's generations without reuse and with it have shown so far.

    What the host adds to a call is its wall-clock time less the GPU's.
    """
    full, cached = _calls(never, True), _calls(reuse, False)
    told: dict[str, Any] = {
        "full_ms": full["gpu"],
        "full_wall_ms": full["wall"],
        "full_host_ms": full["host"],
        "tflop_per_s": tflop_per_s(flop, full["gpu"]["median"]) if full["gpu"] and full["gpu"]["median"] else None,
        "cached_ms": cached["gpu"],
        "cached_wall_ms": cached["wall"],
        "cached_host_ms": cached["host"],
        "calls": len(reuse.records),
        "computed": sum(record.computed for record in reuse.records),
    }
    if never.done and reuse.done:
        speed_up = never.wall_s / reuse.wall_s
        told |= {"never_s": never.wall_s, "adacache_s": reuse.wall_s, "speed_up": speed_up}
        told["efficiency"] = speed_up * told["computed"] / told["calls"]
    return told


def _calls(run: _Generation, computed: bool) -> dict[str, Any]:
    """Return the spread in milliseconds of a generation's calls of one kind; None where there are too few.

    The first calls of a kind touch new memory, and are recorded.
    """
    records = [record for record in run.records if record.computed == computed][WARM_UP:]
    gpu = [sum(record.engine_ms.values()) for record in records]
    wall = [record.wall_ms for record in records]
    host = [whole - inside for whole, inside in zip(wall, gpu, strict=True)]
    values = {"gpu": gpu, "wall": wall, "host": host}
    return {name: asdict(Spread.of(one)) if one else None for name, one in values.items()}
