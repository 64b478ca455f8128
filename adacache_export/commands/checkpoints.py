"""The job of ``adacache-export`` on a checkpoint: export it as a bundle."""

import argparse
from collections.abc import Callable
from pathlib import Path

from adacache_engines.errors import InputError, require
from adacache_export.commands import plans
from adacache_export.commands.fields import given
from adacache_export.commands.progress import PhaseProgress
from adacache_export.commands.tables import errors_table, gigabytes, plans_table
from adacache_export.options import Options
from adacache_runtime.commands.console import console
from adacache_runtime.commands.destinations import check_kept

SUFFIX = ".adacache"


def export_checkpoint(options: argparse.Namespace, check: Callable[[], None]) -> None:
    """Export a checkpoint, and compile plans for the bundle where a library is chosen."""
    require_exporter()
    from adacache_export.checkpoint.hub import resolved
    from adacache_export.checkpoint.pipeline_folder import INDEX
    from adacache_export.convert import convert

    if not (resolved(options.source, options.revision) / INDEX).is_file():
        check_part_precisions(options)
    library, build = plans.chosen(options)
    output: Path = options.output or bundle_name(options.source)
    inputs = [("the checkpoint", options.source)]
    inputs += [(f"--{name.replace('_', '-')}", getattr(options, name)) for name in ("config", "text_encoder", "vae")]
    check_kept(output, inputs)
    with PhaseProgress(check=check) as progress:
        if options.backend == plans.AUTO:
            progress.note(plans.explanation(library))
        manifest = convert(options.source, output, Options(**given(options, Options)), progress, progress.note)
    shown = console()
    shown.print(errors_table(manifest.graphs()))
    print(f"{output}: {len(manifest.files)} files, {gigabytes(manifest)}")
    if library is not None:
        with PhaseProgress(check=check) as progress:
            made = plans.compile_bundle(output, library, build, options, progress)
        shown.print(plans_table([made]))


def bundle_name(source: Path) -> Path:
    """Return the name of the bundle of a checkpoint or a Hugging Face repository, in the current folder."""
    from adacache_export.checkpoint.hub import repository_of

    repository = repository_of(source)
    if repository is not None:
        return Path(repository.rpartition("/")[2] + SUFFIX)
    place = source.resolve()
    return Path((place.name if place.is_dir() else place.stem) + SUFFIX)


def check_part_precisions(options: argparse.Namespace) -> None:
    """Check that a part comes with each precision that is given.

    Raises:
        InputError: there is a precision without its part.
    """
    if options.text_precision and not options.text_encoder:
        raise InputError("--text-precision is that of an encoder that is added: give --text-encoder DIR, too")
    if options.vae_precision and not options.vae:
        raise InputError("--vae-precision is that of a VAE that is added: give --vae DIR, too")


def require_exporter() -> None:
    """Import what the exporter needs.

    Modules that import torch are imported after this, so that ``--help`` and ``--inspect`` do not wait for it.

    Raises:
        MissingDependencyError: something is not installed; names the extra that brings it.
    """
    for module in ("torch", "onnx", "onnx_ir", "onnxscript"):
        require(module, "export")
    require("onnxruntime", "cpu")
