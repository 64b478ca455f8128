"""Measure how long one engine takes to load, in its first call and in later ones."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from adacache_engines.bundle.manifest import Manifest
from adacache_tune.profiling.subjects import Kind, Subject, example, subject_sizes
from adacache_tune.profiling.targets import Layer, Target, polygraphy_errors


@dataclass(frozen=True)
class EngineLatency:
    """The times of one engine, as Polygraphy measured them.

    Attributes:
        name: name of the graph.
        kind: kind of the engine.
        runner: Polygraphy's ``OnnxrtRunner`` or ``TrtRunner``, or ``BoundRunner`` for this project's own bound calls
            (bfloat16 on ONNX Runtime, and providers on a GPU).
        load_ms: time from the file to an engine that is ready.
        first_ms: time of the first call.
        median_ms, p95_ms: times of the counted calls, after those of the warm-up.
        iterations: number of counted calls.
        layers: layers, the slowest first; empty unless asked for.
    """

    name: str
    kind: Kind
    runner: str
    load_ms: float
    first_ms: float
    median_ms: float
    p95_ms: float
    iterations: int
    layers: Sequence[Layer] = ()


def measure_engine(
    target: Target,
    manifest: Manifest,
    subject: Subject,
    sizes: Mapping[str, int],
    iterations: int,
    warm_up: int,
    with_layers: bool,
) -> EngineLatency:
    """Load an engine, measure it and free it.

    Args:
        target: the target that runs it.
        manifest: manifest of the bundle.
        subject: the engine.
        sizes: sizes of the dynamic axes.
        iterations: number of counted calls, at least 1.
        warm_up: number of calls that are not counted, after the first call.
        with_layers: whether to measure the layers, too, in runs of their own.

    Raises:
        EngineError: the engine cannot be loaded or run.
    """
    sizes = subject_sizes(manifest, subject, sizes)
    with polygraphy_errors(f"profiling {subject.name}"):
        runner = target.runner(subject, sizes)
        start = time.perf_counter()
        runner.activate()
        load_ms = 1e3 * (time.perf_counter() - start)
        try:
            arrays = example(subject.graph, sizes)
            feed = {name: arrays[name] for name in runner.get_input_metadata(use_numpy_dtypes=False)}
            times = []
            for _ in range(1 + warm_up + iterations):
                runner.infer(feed)
                times.append(1e3 * runner.last_inference_time())
        finally:
            runner.deactivate()
        layers = target.layers(subject, sizes, iterations) if with_layers else ()
    counted = times[1 + warm_up :]
    return EngineLatency(
        name=subject.name,
        kind=subject.kind,
        runner=runner.name,
        load_ms=load_ms,
        first_ms=times[0],
        median_ms=median(counted),
        p95_ms=float(np.percentile(counted, 95)),
        iterations=iterations,
        layers=sorted(layers, key=lambda layer: -layer.median_ms),
    )
