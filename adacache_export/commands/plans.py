"""The part of ``adacache-export`` that compiles plans: its options, the choice of a library, and the job."""

import argparse
import contextlib
from pathlib import Path

from adacache_engines.backends import BACKENDS, default_backend
from adacache_engines.bundle.files import read_manifest
from adacache_engines.bundle.manifest import PlanSet
from adacache_engines.bundle.shape_profiles import fixed_profile, profile_parts, shape_profile
from adacache_engines.errors import InputError, MissingDependencyError
from adacache_engines.tensorrt.build import BuildOptions, check_options
from adacache_engines.tensorrt.library import LIBRARIES, TARGETS, InstalledLibrary, gpu_target, open_library
from adacache_engines.tensorrt.plan_builder import build_plans
from adacache_export.commands.progress import PhaseProgress
from adacache_runtime.commands.ranges import check_ranges

AUTO = "auto"
RANGES = {"workspace": (1, 10**7), "jobs": (0, 1024)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that concern plans."""
    add = parser.add_argument_group("compiled engines").add_argument
    add(
        "--backend",
        choices=(*BACKENDS, AUTO),
        default=default_backend(),
        help="library to compile plans for, beside the ONNX graphs; for a finished bundle, too. auto: TensorRT where "
        "it and a GPU are there, else TensorRT-RTX where it is installed "
        f"(default: {default_backend()}, which needs no plans)",
    )
    add(
        "--profile",
        metavar="SIZE:LENGTH[:PROMPTS]",
        action="append",
        default=[],
        help="range of videos that plans run at, repeatable: 480p:2s, 854x480:51f, 240p..480p..720p:2s..4s:1..4 "
        "(default: the bundle's default video)",
    )
    add(
        "--target",
        metavar="SM",
        action="append",
        default=[],
        help=f"TensorRT-RTX: compute capability to build for, repeatable: {', '.join(TARGETS)} (default: from 8.0)",
    )
    add("--workspace", metavar="MB", type=int, help="largest activation memory of one engine (default: no limit)")
    add("--weight-streaming", action="store_true", help="let weights stay in host memory at run time")
    add("--optimization-level", metavar="0-5", type=int, help="TensorRT: how long it looks for faster kernels")
    add(
        "--refit",
        action="store_true",
        help="TensorRT: build one plan for all blocks of a kind, and put their weights in",
    )
    add(
        "--jobs", metavar="N", type=int, default=0, help="number of processes that build (default: by cores and memory)"
    )


def chosen(options: argparse.Namespace) -> tuple[InstalledLibrary | None, BuildOptions]:
    """Return the library that the options choose and how it builds, checked as far as is possible without a bundle.

    Returns:
        The library, or None for ONNX Runtime alone; and the options of its builds.

    Raises:
        InputError: the library does not have an option, or a profile is malformed.
        MissingDependencyError: the library is not installed.
    """
    check_ranges(options, RANGES)
    build = BuildOptions(
        targets=tuple(options.target),
        workspace_mb=options.workspace,
        weight_streaming=options.weight_streaming,
        optimization_level=options.optimization_level,
        refit=options.refit,
    )
    library = _automatic() if options.backend == AUTO else None
    if options.backend in LIBRARIES:
        library = open_library(options.backend)
    if library is None:
        if options.profile or build != BuildOptions():
            raise InputError("--profile and the options of compiled engines need --backend tensorrt-rtx or tensorrt")
        return None, build
    check_options(library.name, build)
    for name in options.profile:
        profile_parts(name)
    return library, build


def explanation(library: InstalledLibrary | None) -> str:
    """Return a sentence on what ``auto`` chose, and why."""
    if library is None:
        return "backend: ONNX Runtime only, because neither TensorRT with a GPU nor TensorRT-RTX is installed"
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
    folder: Path,
    library: InstalledLibrary,
    build: BuildOptions,
    options: argparse.Namespace,
    progress: PhaseProgress,
) -> PlanSet:
    """Build the plans that the options ask for, by default for the bundle's default video.

    Raises what :func:`adacache_engines.tensorrt.plan_builder.build_plans` raises.
    """
    manifest = read_manifest(folder)
    names = options.profile or [fixed_profile(manifest)]
    profiles = {name: shape_profile(manifest, name) for name in names}
    return build_plans(folder, library, profiles, build, progress.phase, options.jobs, options.force, progress.note)
