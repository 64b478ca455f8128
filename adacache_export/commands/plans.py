"""The command line's way to compiled plans: which library, which profiles, and what came of it."""

import argparse
import contextlib
from collections.abc import Iterable
from pathlib import Path

from rich.table import Table

from adacache_engines.bundle.files import read_manifest
from adacache_engines.bundle.manifest import PlanSet
from adacache_engines.bundle.shape_profiles import fixed_profile, parse_profile, shape_profile
from adacache_engines.errors import InputError, MissingDependencyError
from adacache_engines.tensorrt.build import TARGETS, BuildOptions, check_options
from adacache_engines.tensorrt.library import LIBRARIES, InstalledLibrary, gpu_target, open_library
from adacache_engines.tensorrt.plan_builder import Phase, build_plans

ONNX_ONLY = "onnxruntime"
BACKENDS = (ONNX_ONLY, *LIBRARIES, "auto")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that concern plans."""
    add = parser.add_argument_group("compiled engines").add_argument
    add(
        "--backend",
        choices=BACKENDS,
        default=ONNX_ONLY,
        help="compile plans for it, beside the ONNX graphs; of a bundle, too. auto: TensorRT where it and a GPU are "
        f"there, else TensorRT-RTX where it is installed (default: {ONNX_ONLY}, which compiles when it loads)",
    )
    add(
        "--profile",
        metavar="SIZE:LENGTH[:PROMPTS]",
        action="append",
        default=[],
        help="sizes that plans run at, repeatable: 480p:2s, 480x854:51f, 240p..480p..720p:2s..4s:1..4 "
        "(default: the bundle's default video)",
    )
    add(
        "--target",
        metavar="SM",
        action="append",
        default=[],
        help=f"compute capability to build for with TensorRT-RTX, repeatable: {', '.join(TARGETS)} (default: from 8.0)",
    )
    add("--workspace", metavar="MB", type=int, help="most activation memory of one engine")
    add("--weight-streaming", action="store_true", help="weights may stay in host memory at run time")
    add("--optimization-level", metavar="0-5", type=int, help="how long TensorRT looks for faster kernels")
    add("--refit", action="store_true", help="TensorRT: build one block of a kind, put the others' weights in")
    add("--jobs", metavar="N", type=int, default=0, help="processes that build (default: by cores and memory)")


def asked(options: argparse.Namespace) -> tuple[InstalledLibrary | None, BuildOptions]:
    """The library that the options choose, None for ONNX Runtime alone; everything checked that can be by now.

    Raises:
        InputError: an option that the library does not have, or a profile that is not one.
        MissingDependencyError: the library is not installed.
    """
    build = BuildOptions(
        targets=tuple(options.target),
        workspace_mb=options.workspace,
        weight_streaming=options.weight_streaming,
        optimization_level=options.optimization_level,
        refit=options.refit,
    )
    library = _automatic() if options.backend == "auto" else None
    if options.backend in LIBRARIES:
        library = open_library(options.backend)
    if library is None:
        if options.profile or build != BuildOptions():
            raise InputError("--profile and the options of compiled engines need --backend tensorrt-rtx or tensorrt")
        return None, build
    check_options(library.name, build)
    for name in options.profile:
        parse_profile(name)
    return library, build


def explain(library: InstalledLibrary | None) -> str:
    """What was chosen for ``auto``, and why."""
    if library is None:
        return "backend: ONNX Runtime only, because neither TensorRT with a GPU nor TensorRT-RTX is here"
    why = "it and a GPU are here" if library.name == "tensorrt" else "it is installed and builds without a GPU"
    return f"backend: {library.name} {library.version}, because {why}"


def _automatic() -> InstalledLibrary | None:
    with contextlib.suppress(MissingDependencyError):
        library = open_library("tensorrt")
        if gpu_target() is not None:
            return library
    with contextlib.suppress(MissingDependencyError):
        return open_library("tensorrt-rtx")
    return None


def compile_bundle(
    folder: Path, library: InstalledLibrary, build: BuildOptions, options: argparse.Namespace, phase: Phase
) -> PlanSet:
    """Builds the plans that were asked for; raises what :func:`build_plans` raises."""
    manifest = read_manifest(folder)
    names = options.profile or [fixed_profile(manifest)]
    profiles = {name: shape_profile(manifest, name) for name in names}
    return build_plans(folder, library, profiles, build, phase, options.jobs, options.force)


def plan_table(sets: Iterable[PlanSet]) -> Table:
    """A line a set of plans."""
    table = Table("plans", "compute capability", "profiles", "files", "MB", "built in", title="compiled engines")
    for plans in sets:
        files = {entry.path: entry for entry in plans.plans}
        table.add_row(
            f"{plans.library} {plans.version}",
            ", ".join(plans.targets),
            ", ".join(plans.profiles),
            f"{len(files)} for {len(plans.plans)} stages and variants",
            f"{sum(entry.nbytes for entry in files.values()) / 1e6:.1f}",
            f"{sum(entry.build_s for entry in files.values()):.1f} s",
        )
    return table
