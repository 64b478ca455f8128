"""Builds plans in worker processes. Each finished plan has a record beside it, so that a build can go on later."""

import json
import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from adacache_engines.bundle.files import sha256_file
from adacache_engines.bundle.manifest import Graph, Library
from adacache_engines.bundle.shape_profiles import ShapeProfile
from adacache_engines.errors import EngineError
from adacache_engines.tensorrt.build import BuildOptions, build_plan
from adacache_engines.tensorrt.library import InstalledLibrary, open_library
from adacache_engines.tensorrt.refit import kind_of, refit

TIMING_CACHE = "timing.cache"  # in the folder of the plans


@dataclass(frozen=True)
class Job:
    """A plan to build.

    Attributes:
        graph: what it computes.
        onnx: the graph's file.
        plan: the file to write.
        profiles, options, fused: see :func:`adacache_engines.tensorrt.build.build_plan`.
        digest: of all that the plan depends on.
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
    """A finished plan; its record, a JSON file beside it."""

    digest: str
    sha256: str
    nbytes: int
    build_s: float


def run_jobs(jobs: Sequence[Job], library: InstalledLibrary, workers: int, done: Callable[[int], None]) -> list[Built]:
    """Builds what is not there yet, in ``workers`` processes; ``done`` gets 1 for each plan.

    Raises:
        EngineError: a plan cannot be built, or a worker was killed. Finished plans stay.
    """
    found = {job.plan: record for job in jobs if (record := finished(job))}
    done(len(found))
    missing = [job for job in jobs if job.plan not in found]
    if workers == 1:
        cache = _timing_cache(library, missing[0].plan.parent) if missing else None
        firsts: dict[str, Job] = {}
        for job in jobs:
            first = firsts.setdefault(kind_of(job.onnx), job) if job.options.refit else job
            if job.plan not in found:
                found[job.plan] = _build(job, library, cache, lambda: False, None if first is job else first)
                done(1)
    elif missing:
        found |= _in_parallel(missing, library.name, workers, done)
    return [found[job.plan] for job in jobs]


def finished(job: Job) -> Built | None:
    """The record of a plan that an earlier build left whole; None if there is none for these settings."""
    try:
        record = Built(**json.loads(_record(job).read_text()))
        whole = record.digest == job.digest and sha256_file(job.plan) == record.sha256
    except (OSError, ValueError, TypeError):
        return None
    return record if whole else None


def record_finished(job: Job, plan: Path, record: Built) -> None:
    """Makes a plan that lies elsewhere on this disk the job's."""
    job.plan.unlink(missing_ok=True)
    try:
        job.plan.hardlink_to(plan)
    except OSError:  # not on every file system
        shutil.copyfile(plan, job.plan)
    _write(_record(job), json.dumps(asdict(record)).encode())


def _record(job: Job) -> Path:
    return job.plan.with_suffix(".json")


def _in_parallel(jobs: Sequence[Job], library: Library, workers: int, done: Callable[[int], None]) -> dict[Path, Built]:
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    found = {}
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (library, stop)) as pool:
        try:
            futures = {pool.submit(_work, job): job for job in jobs}
            for future in as_completed(futures):
                found[futures[future].plan] = future.result()
                done(1)
        except BrokenProcessPool as error:
            raise EngineError(
                "a process that builds plans was killed, perhaps for want of memory; build again with --jobs 1: "
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


def _work(job: Job) -> Built:
    return _build(job, _worker["library"], None, _worker["stop"].is_set)


def _build(
    job: Job, library: InstalledLibrary, timing_cache: Any, stopped: Callable[[], bool], first: Job | None = None
) -> Built:
    """Builds a plan, or makes it of that of the ``first`` job of its kind."""
    began = time.perf_counter()
    if first is None:
        plan = build_plan(library, job.onnx, job.graph, job.profiles, job.options, job.fused, timing_cache, stopped)
    else:
        plan = refit(library, first.plan.read_bytes(), first.onnx, job.onnx)
    build_s = time.perf_counter() - began
    _write(job.plan, plan)
    if timing_cache is not None:
        _write(job.plan.with_name(TIMING_CACHE), bytes(timing_cache.serialize()))
    record = Built(job.digest, sha256_file(job.plan), plan.nbytes, round(build_s, 3))
    _write(_record(job), json.dumps(asdict(record)).encode())
    return record


def _write(path: Path, content: bytes | memoryview) -> None:
    """Whole or not at all."""
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
