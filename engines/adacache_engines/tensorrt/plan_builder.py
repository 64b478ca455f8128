"""Compile a bundle: one plan for each stage and variant, added to the manifest when all are there.

Plans are built in a hidden folder of the bundle. An interrupted build goes on from what is finished there; the
manifest changes at the end, in one step.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from adacache_engines.bundle.files import Bundle, open_bundle, read_manifest, replace_manifest
from adacache_engines.bundle.locks import changing
from adacache_engines.bundle.manifest import Graph, Manifest, PlanEntry, PlanSet, Variant
from adacache_engines.bundle.shape_profiles import ShapeProfile, vae_ranges
from adacache_engines.contract.device import HostDevice
from adacache_engines.errors import BundleError, EngineError, InputError
from adacache_engines.tensorrt.build import USUAL_TARGETS, BuildOptions, check_options
from adacache_engines.tensorrt.build_tasks import TIMING_CACHE, BuildTask, Built, record_finished, run_tasks
from adacache_engines.tensorrt.library import CURRENT, InstalledLibrary, gpu_target
from adacache_engines.tensorrt.plans import ENGINES, check_plans

Phase = Callable[[str, int], Callable[[int], None]]  # begins a phase of a number of units; the result counts them

REUSE = "add"  # the graph of a block's reuse variant
WORKER_NBYTES = 700e6  # memory of a process with the library and a small graph
WEIGHTS_HELD = 5  # times that a worker holds its graph's weights: read, in the network, compiled, serialised, written


def build_plans(
    folder: Path,
    library: InstalledLibrary,
    profiles: Mapping[str, ShapeProfile],
    options: BuildOptions,
    phase: Phase = lambda _name, _total: lambda _units: None,
    workers: int = 0,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> PlanSet:
    """Compile every graph of a bundle and record the plans in its manifest.

    Args:
        folder: folder of the bundle.
        library: library that compiles.
        profiles: ranges of the dynamic axes by the names of the profiles, in order.
        options: options of the build.
        phase: function that is told of every phase.
        workers: number of processes; 0 = as many as cores and memory allow.
        force: whether plans that are there already are built again.
        say: function that gets a sentence where another process changes the bundle and this one waits.

    Raises:
        InputError: an option that the library does not have; or its plans are there with other settings, and
            ``force`` is off. With the same settings, what the set lacks is built.
        BundleError: the bundle, or its plans, were changed, or the bundle cannot be written to.
        EngineError: a graph cannot be built, or the disk is full; finished plans are kept for the next try.
    """
    check_options(library.name, options)
    with changing(folder, say):
        return _build_plans(folder, library, profiles, options, phase, workers, force)


def _build_plans(
    folder: Path,
    library: InstalledLibrary,
    profiles: Mapping[str, ShapeProfile],
    options: BuildOptions,
    phase: Phase,
    workers: int,
    force: bool,
) -> PlanSet:
    """Do the work of :func:`build_plans` while no other process changes the bundle."""
    size = sum(entry.nbytes for entry in read_manifest(folder).files.values())
    bundle = open_bundle(folder, phase("checking the bundle", size))
    targets = _targets(library, options)
    name = f"{library.name}-{library.version}" + "".join(f"-sm{target.replace('.', '')}" for target in options.targets)
    wanted = PlanSet(
        library=library.name,
        version=library.version,
        targets=targets,
        precision=bundle.manifest.precision,
        profiles=dict(profiles),
        options={key: value for key, value in dataclasses.asdict(options).items() if key != "targets" and value},
        plans=(),
    )
    there = bundle.manifest.plans.get(name)
    if there is not None:
        _put_back(bundle, name, there)
    if there is not None and not force:
        if there.model_copy(update={"plans": ()}) != wanted:
            raise InputError(
                f"{folder} has {name} plans with other settings (profiles {', '.join(there.profiles)}); "
                "replace them with --force"
            )
        check_plans(bundle, there)
        if not _lacking(bundle.manifest, there):
            return there
    partial = folder / ENGINES / f".{name}.partial"
    tasks = _tasks(bundle, wanted, options, partial)
    with _full_disk_told(partial):
        partial.mkdir(parents=True, exist_ok=True)
        if there is not None and not force:
            _reuse(bundle, there, tasks)
        count = workers or _workers(bundle, library)
        built = run_tasks(tasks, library, count, phase("building plans", len(tasks)))
        entries = _entries(bundle.manifest, name, tasks, built)
        plans = wanted.model_copy(update={"plans": tuple(entries)})
        bundle.check(*bundle.manifest.used_files())  # a plan of a changed graph would bear the old one's hash
        _publish(folder, partial, name, plans)
    return plans


def _lacking(manifest: Manifest, plans: PlanSet) -> list[str]:
    """Return the graphs without a plan in the set, such as those of a text encoder that was added later."""
    hashes = {entry.graph: entry.graph_sha256 for entry in plans.plans}
    return [graph.name for graph in manifest.graphs() if hashes.get(graph.name) != manifest.files[graph.path].sha256]


def _reuse(bundle: Bundle, plans: PlanSet, tasks: Sequence[BuildTask]) -> None:
    """Take over the set's plans as finished ones of the build that completes it."""
    there = {entry.graph: entry for entry in plans.plans}
    lacking = _lacking(bundle.manifest, plans)
    for task in tasks:
        if task.graph.name not in lacking:
            entry = there[task.graph.name]
            record_finished(
                task, bundle.path(entry.path), Built(task.digest, entry.sha256, entry.nbytes, entry.build_s)
            )


def _targets(library: InstalledLibrary, options: BuildOptions) -> tuple[str, ...]:
    """Return the compute capabilities that the plans will run on."""
    if library.name == "tensorrt-rtx" and options.targets != (CURRENT,):
        return options.targets or USUAL_TARGETS
    target = gpu_target()
    if target is None:
        what = "TensorRT builds plans" if library.name == "tensorrt" else f"target {CURRENT} is"
        raise InputError(
            f"{what} for a GPU that is there, and this machine has none that CUDA can use; "
            "build with --backend tensorrt-rtx for named targets, or on a machine with the GPU that will run them"
        )
    return (target,)


def _workers(bundle: Bundle, library: InstalledLibrary) -> int:
    """Return the number of processes that cores and memory allow; one for TensorRT, which times kernels undisturbed."""
    if library.name == "tensorrt":
        return 1
    blocks = sum(stage.block for stage in bundle.manifest.stages)
    need = WORKER_NBYTES + WEIGHTS_HELD * bundle.manifest.files[bundle.manifest.weights].nbytes / max(blocks, 1)
    free = HostDevice().free_nbytes()
    return max(1, min(os.cpu_count() or 1, int(free / need) if free else 1))


def _tasks(bundle: Bundle, wanted: PlanSet, options: BuildOptions, partial: Path) -> list[BuildTask]:
    manifest = bundle.manifest
    blocks = {stage.graph.name for stage in manifest.stages if stage.block}
    weights = {name: manifest.files[path].sha256 for name, path in manifest.weight_files().items()}
    tasks = []
    for graph in manifest.graphs():
        profiles = tuple(_ranges(manifest, graph, profile) for profile in wanted.profiles.values())
        content = [wanted.model_dump(mode="json"), profiles, manifest.files[graph.path].sha256, weights[graph.name]]
        tasks.append(
            BuildTask(
                graph=graph,
                onnx=bundle.path(graph.path),
                plan=partial / f"{graph.name}.plan",
                profiles=profiles,
                options=options,
                fused=graph.name in blocks and manifest.precision != "fp32",
                digest=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
            )
        )
    return tasks


def _ranges(manifest: Manifest, graph: Graph, profile: ShapeProfile) -> ShapeProfile:
    """Return a profile's ranges of the axes, as one graph has them."""
    if graph in manifest.text.encoder_stages:  # reads each prompt once, and by itself
        return {**profile, "batch": (1, 1, 1)}
    if graph in manifest.vae_graphs():
        return vae_ranges(manifest.latent, graph, profile)
    return profile


def _entries(manifest: Manifest, name: str, tasks: Sequence[BuildTask], built: Sequence[Built]) -> Iterator[PlanEntry]:
    """Return the entries of all stages and variants; of equal files, the first is named for all."""
    first: dict[str, str] = {}
    by_graph = {}
    for task, record in zip(tasks, built, strict=True):
        path = first.setdefault(record.sha256, f"{ENGINES}/{name}/{task.plan.name}")
        by_graph[task.graph.name] = (path, record)

    def entry(stage: str, variant: Variant, graph: str) -> PlanEntry:
        path, record = by_graph[graph]
        return PlanEntry(
            stage=stage,
            variant=variant,
            graph=graph,
            path=path,
            nbytes=record.nbytes,
            sha256=record.sha256,
            graph_sha256=manifest.files[paths[graph]].sha256,
            build_s=record.build_s,
        )

    paths = {graph.name: graph.path for graph in manifest.graphs()}
    for graph in manifest.graphs():
        yield entry(graph.name, "full", graph.name)
    for stage in manifest.stages:
        if stage.block:
            yield entry(stage.graph.name, "reuse", REUSE)


def _publish(folder: Path, partial: Path, name: str, plans: PlanSet) -> None:
    """Move the plans to their place, then replace the manifest in one step; a failure leaves the old plans there."""
    used = {Path(entry.path).name for entry in plans.plans} | {TIMING_CACHE}
    place, old = _places(folder, name)
    shutil.rmtree(old, ignore_errors=True)
    try:
        if place.exists():  # replaced, or left by a build that was stopped just here
            place.rename(old)
        partial.rename(place)
        manifest = read_manifest(folder)
        replace_manifest(folder, manifest.model_copy(update={"plans": {**manifest.plans, name: plans}}))
    except BaseException:
        _exchange(place, old, partial)
        raise
    shutil.rmtree(old, ignore_errors=True)
    for file in place.iterdir():
        if file.name not in used:  # records of finished plans
            file.unlink()


def _put_back(bundle: Bundle, name: str, plans: PlanSet) -> None:
    """Put plans back that the manifest names, and that a killed process had moved away for new ones."""
    place, old = _places(bundle.folder, name)
    if not old.is_dir():
        return
    try:
        check_plans(bundle, plans)
    except BundleError:
        _exchange(place, old, place.with_name(f".{name}.partial"))


def _places(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the folder of a set of plans, and that in which the old ones are until the manifest names the new ones."""
    return folder / ENGINES / name, folder / ENGINES / f".{name}.old"


def _exchange(place: Path, old: Path, partial: Path) -> None:
    """Undo the renames of :func:`_publish`, however many of them were made."""
    if place.exists() and not partial.exists():
        place.rename(partial)
    if old.exists() and not place.exists():
        old.rename(place)


@contextlib.contextmanager
def _full_disk_told(partial: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise EngineError(
            f"the disk is full ({error}); finished plans are kept in {partial}: make room and build again"
        ) from error
