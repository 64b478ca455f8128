"""``adacache-export``: a checkpoint becomes a bundle, or a bundle is extended, inspected or verified."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from adacache_engines.bundle.files import MANIFEST
from adacache_export.commands import inspect, plans, triton
from adacache_export.commands.checkpoints import export_checkpoint
from adacache_export.commands.extend import extend_bundle
from adacache_export.commands.fields import add_fields
from adacache_export.commands.verify import verify_bundle
from adacache_export.options import Options
from adacache_runtime.commands.process import run
from adacache_runtime.commands.version import add_version

PROGRAM = "adacache-export"
Job = Callable[[argparse.Namespace, Callable[[], None]], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 for an error, 2 for wrong usage, 130 or 143 when stopped."""
    return run(PROGRAM, lambda: _parsed(arguments), lambda options, check: _job(options)(options, check))


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    inspect.check_usage(parser, options)
    triton.check_usage(parser, options)
    return options


def _job(options: argparse.Namespace) -> Job:
    if options.inspect:
        return inspect.inspect_bundle
    if options.verify:
        return verify_bundle
    if options.triton_repository:
        return triton.add_bundle
    return extend_bundle if (options.source / MANIFEST).is_file() else export_checkpoint


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        PROGRAM,
        description="Turn the checkpoint of a video diffusion transformer into a bundle that adacache-run generates "
        "from, without PyTorch.",
    )
    add_version(parser)
    add = parser.add_argument
    add(
        "source",
        metavar="CHECKPOINT",
        type=Path,
        help="file, folder, or the id of a Hugging Face repository in the local cache; to extend, inspect or verify "
        "it, a bundle",
    )
    add("-o", "--output", metavar="BUNDLE", type=Path, help="folder to make (default: CHECKPOINT's name + .adacache)")
    add_fields(parser, Options)
    plans.add_arguments(parser)
    jobs = parser.add_mutually_exclusive_group()
    jobs.add_argument("--inspect", action="store_true", help="show what is in a bundle, and stop")
    jobs.add_argument("--verify", action="store_true", help="check the hashes and engines of a bundle again, and stop")
    triton.add_arguments(parser, jobs)
    inspect.add_arguments(parser)
    return parser
