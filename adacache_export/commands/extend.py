"""The job of ``adacache-export`` on a bundle: add encoders, a VAE, signals or compiled plans."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import get_args

from adacache_engines.bundle.files import read_manifest
from adacache_engines.bundle.manifest import PartName
from adacache_engines.errors import InputError
from adacache_export.commands import plans
from adacache_export.commands.checkpoints import check_part_precisions, require_exporter
from adacache_export.commands.fields import flag_of, flags, given
from adacache_export.commands.progress import PhaseProgress
from adacache_export.commands.tables import errors_table, gigabytes, plans_table
from adacache_export.options import Options, PartOptions
from adacache_runtime.caching.signals.registry import signal_from
from adacache_runtime.commands.console import console

FOR_BUNDLES = {field.name for field in dataclasses.fields(PartOptions)} | {"force"}


def options_of_checkpoints(options: argparse.Namespace) -> list[str]:
    """Return the options that were given and concern the export of a checkpoint only, such as ``--probe``."""
    return [
        *flags(options, ["output"]),
        *(flag_of(Options, name) for name in given(options, Options) if name not in FOR_BUNDLES),
    ]


def extend_bundle(options: argparse.Namespace, check: Callable[[], None]) -> None:
    """Add parts, signals or plans to a bundle."""
    foreign = options_of_checkpoints(options)
    if foreign:
        raise InputError(
            f"{options.source} is a bundle, and {', '.join(foreign)} belongs to the export of a checkpoint; "
            "export that again, or leave the option out"
        )
    check_part_precisions(options)
    library, build = plans.chosen(options)
    if options.backend == plans.AUTO:
        print(plans.explanation(library))
    parts = [name for name in get_args(PartName) if getattr(options, name)]
    if not (library or parts or options.signals):
        raise InputError(
            f"{options.source} is a bundle already; compile plans with --backend tensorrt-rtx or tensorrt, add parts "
            "with --text-encoder, --image-encoder, --vae or --signal, or look at it with --inspect"
        )
    if parts:
        _add_parts(options, check)
    if options.signals:
        _add_signals(options, check)
        if library is None and read_manifest(options.source).plans:
            print("the compiled plans lack the new signals; build them again with --backend")
    if library is not None:
        with PhaseProgress(check=check) as progress:
            made = plans.compile_bundle(options.source, library, build, options, progress)
        console().print(plans_table([made]))


def _add_parts(options: argparse.Namespace, check: Callable[[], None]) -> None:
    require_exporter()
    from adacache_export.parts.add_parts import add_parts

    with PhaseProgress(check=check) as progress:
        added = add_parts(options.source, PartOptions(**given(options, PartOptions)), progress)
    console().print(errors_table(added.graphs))
    manifest = read_manifest(options.source)
    print(f"{options.source}: {len(manifest.files)} files, {gigabytes(manifest)}")
    if added.dropped:
        print(f"{added.dropped} compiled plans of what was replaced are gone; build them again with --backend")


def _add_signals(options: argparse.Namespace, check: Callable[[], None]) -> None:
    require_exporter()
    from adacache_export.parts.add_signals import add_signals

    with PhaseProgress(check=check) as progress:
        graphs = add_signals(options.source, [signal_from(choice) for choice in options.signals], progress)
    console().print(errors_table(graphs))
