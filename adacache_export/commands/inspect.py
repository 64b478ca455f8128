"""The job ``adacache-export --inspect``: show what is in a bundle, and count what it computes."""

import argparse
from collections.abc import Callable
from pathlib import Path

from adacache_engines.bundle.files import read_manifest
from adacache_export.commands.tables import plans_table
from adacache_export.inspection.computation import Computation
from adacache_export.inspection.facts import facts_table, stages_table
from adacache_runtime.caching.presets import PRESETS
from adacache_runtime.commands.console import console
from adacache_runtime.commands.options import add_size, video_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that go with ``--inspect``."""
    _add_to(parser.add_argument_group("with --inspect: the video to count operations for"))


def check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program where such an option is given without ``--inspect``."""
    alone = argparse.ArgumentParser(add_help=False)
    _add_to(alone)
    given = [f"--{name}" for name, default in vars(alone.parse_args([])).items() if getattr(options, name) != default]
    if given and not options.inspect:
        parser.error(f"{', '.join(given)}: only with --inspect")


def _add_to(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    add_size(parser)
    parser.add_argument(
        "--policy",
        metavar="POLICY",
        action="append",
        default=[],
        help=f"policy to count for, repeatable: a JSON file, or one of {', '.join(PRESETS)} (default: all of these)",
    )
    parser.add_argument(
        "--trace",
        metavar="FILE.json",
        type=Path,
        action="append",
        default=[],
        help="trace that adacache-run wrote, to count for that run, repeatable",
    )


def inspect_bundle(options: argparse.Namespace, _check: Callable[[], None]) -> None:
    """Print the facts, computation, stages and plans of a bundle."""
    manifest = read_manifest(options.source)
    asked = {name: value for name, value in video_size(options, manifest).items() if value is not None}
    computation = Computation.of(manifest, manifest.video.model_copy(update=asked))
    by_policy = computation.table(options.policy, options.trace)
    shown = console()
    shown.print(facts_table(options.source, manifest, computation.facts()))
    if by_policy:
        shown.print(by_policy)
    shown.print(stages_table(manifest))
    if manifest.plans:
        shown.print(plans_table(manifest.plans.values()))
