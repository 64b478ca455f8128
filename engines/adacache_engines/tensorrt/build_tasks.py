"""Build plans in worker processes. Each finished plan has a record beside it, so that a build can go on later."""

import json
import logging
import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from adacache_engines.bundle.files import sha256_file
from adacache_engines.bundle.manifest import Graph, Library
from adacache_engines.bundle.shape_profiles import ShapeProfile
from adacache_engines.errors import EngineError
from adacache_engines.tensorrt.build import BuildOptions, build_plan
from adacache_engines.tensorrt.library import InstalledLibrary, open_library
from adacache_engines.tensorrt.refit import fixed_weights, kind_of, refit

LOG = logging.getLogger(__name__)
TIMING_CACHE = "timing.cache"  # in the folder of the plans


@dataclass(frozen=True)
class BuildTask:
    """A plan to build.

    Attributes:
        graph: graph that the plan computes.
        onnx: ONNX file of the graph.
        plan: file to write.
        profiles, options, fused: see :func:`adacache_engines.tensorrt.build.build_plan`.
        digest: digest of everything that the plan depends on.
    """

    graph: Graph
    onnx: Path
    plan: Path
    profiles: tuple[ShapeProfile, ...]
    options: BuildOptions
    fused: bool
    digest: str


@dataclass(frozen=True)
class Built:
    """The record of a finished plan, a JSON file beside it.

    Attributes:
        digest: digest of everything that the plan depends on.
        sha256: SHA-256 of the plan.
        nbytes: size of the plan.
        build_s: seconds that the build took.
    """

    digest: str
    sha256: str
    nbytes: int
    build_s: float


def run_tasks(
    tasks: Sequence[BuildTask], library: InstalledLibrary, workers: int, done: Callable[[int], None]
) -> list[Built]:
    """Build the plans that are not there yet, in ``workers`` processes; ``done`` gets 1 for each plan.

    Raises:
        EngineError: a plan cannot be built, or a worker was killed. Finished plans stay.
    """
    found = {task.plan: record for task in tasks if (record := finished(task))}
    done(len(found))
    missing = [task for task in tasks if task.plan not in found]
    if workers == 1:
        cache = _timing_cache(library, missing[0].plan.parent) if missing else None
        for first, *others in _kinds(tasks):
            refits = first.options.refit and bool(others)
            if first.plan not in found:
                found[first.plan] = _build(first, library, cache, lambda: False, refits=refits)
                done(1)
            others = [task for task in others if task.plan not in found]
            if others and refits:
                refits = not fixed_weights(library, first.plan.read_bytes(), first.onnx)
            for task in others:
                found[task.plan] = _build(task, library, cache, lambda: False, first if refits else None)
                done(1)
    elif missing:
        found |= _in_parallel(missing, library.name, workers, done)
    return [found[task.plan] for task in tasks]


def _kinds(tasks: Sequence[BuildTask]) -> list[list[BuildTask]]:
    """Return the tasks whose graphs differ in their weights alone; without ``refit``, each by itself."""
    kinds: dict[str, list[BuildTask]] = {}
    for task in tasks:
        kinds.setdefault(kind_of(task.onnx) if task.options.refit else task.graph.name, []).append(task)
    return list(kinds.values())


def finished(task: BuildTask) -> Built | None:
    """Return the record of a plan that an earlier build left whole; None = there is none for these settings."""
    try:
        record = Built(**json.loads(_record(task).read_text()))
        whole = record.digest == task.digest and sha256_file(task.plan) == record.sha256
    except (OSError, ValueError, TypeError):
        return None
    return record if whole else None


def record_finished(task: BuildTask, plan: Path, record: Built) -> None:
    """Take over a plan that lies elsewhere on this disk."""
    task.plan.unlink(missing_ok=True)
    try:
        task.plan.hardlink_to(plan)
    except OSError:  # not on every file system
        shutil.copyfile(plan, task.plan)
    _write(_record(task), json.dumps(asdict(record)).encode())


def _record(task: BuildTask) -> Path:
    return task.plan.with_suffix(".json")


def _in_parallel(
    tasks: Sequence[BuildTask], library: Library, workers: int, done: Callable[[int], None]
) -> dict[Path, Built]:
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    found = {}
    with ProcessPoolExecutor(min(workers, len(tasks)), context, _start_worker, (library, stop)) as pool:
        try:
            futures = {pool.submit(_work, task): task for task in tasks}
            for future in as_completed(futures):
                found[futures[future].plan] = future.result()
                done(1)
        except BrokenProcessPool as error:
            raise EngineError(
                "a process that builds plans was killed, perhaps because memory was short; build again with --jobs 1: "
                "finished plans are kept"
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return found


_worker: dict[str, Any] = {}  # a process's library and stop flag, set when it starts


def _start_worker(library: Library, stop: Event) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and says when to stop
    _worker["library"], _worker["stop"] = open_library(library), stop


def _work(task: BuildTask) -> Built:
    return _build(task, _worker["library"], None, _worker["stop"].is_set)


def _build(
    task: BuildTask,
    library: InstalledLibrary,
    timing_cache: Any,
    stopped: Callable[[], bool],
    first: BuildTask | None = None,
    refits: bool = False,
) -> Built:
    """Build a plan, or make it from that of the ``first`` task of its kind.

    Where TensorRT drops weights from a plan that can be refitted, one that cannot is built in its stead.
    """
    began = time.perf_counter()

    def built(options: BuildOptions) -> memoryview:
        return build_plan(library, task.onnx, task.graph, task.profiles, options, task.fused, timing_cache, stopped)

    if first is not None:
        plan = refit(library, first.plan.read_bytes(), first.onnx, task.onnx)
    else:
        plan = built(replace(task.options, refit=refits))
        dropped = fixed_weights(library, plan, task.onnx) if refits else []
        if dropped:
            LOG.warning(
                "%s %s drops %s when it builds %s to be refitted; the blocks of this kind are built one by one",
                *(library.name, library.version, ", ".join(dropped), task.graph.name),
            )
            plan = built(replace(task.options, refit=False))
    build_s = time.perf_counter() - began
    _write(task.plan, plan)
    if timing_cache is not None:
        _write(task.plan.with_name(TIMING_CACHE), bytes(timing_cache.serialize()))
    record = Built(task.digest, sha256_file(task.plan), plan.nbytes, round(build_s, 3))
    _write(_record(task), json.dumps(asdict(record)).encode())
    return record


def _write(path: Path, content: bytes | memoryview) -> None:
    """Write a file, whole or not at all."""
    partial = path.with_name(f".{path.name}.writing")
    partial.write_bytes(content)
    partial.replace(path)


def _timing_cache(library: InstalledLibrary, folder: Path) -> Any:
    """TensorRT's, with what earlier builds measured; None for TensorRT-RTX, which measures nothing when building."""
    if library.name == "tensorrt-rtx":
        return None
    path = folder / TIMING_CACHE
    config = library.api.Builder(library.logger).create_builder_config()
    return config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
