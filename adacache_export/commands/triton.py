"""The job ``adacache-export --triton-repository``: write a bundle into a model repository of Triton."""

import argparse
from collections.abc import Callable
from pathlib import Path

from adacache_engines.backends import default_backend
from adacache_engines.errors import InputError
from adacache_export.commands.extend import options_of_checkpoints
from adacache_export.commands.fields import flag_of, flags, given
from adacache_export.commands.progress import PhaseProgress
from adacache_export.options import PartOptions
from adacache_runtime.commands.destinations import check_apart


def add_arguments(parser: argparse.ArgumentParser, jobs: argparse._MutuallyExclusiveGroup) -> None:
    """Add the option that asks for this job to ``jobs``, and what goes with it to ``parser``."""
    jobs.add_argument(
        "--triton-repository",
        metavar="DIR",
        type=Path,
        help="write a bundle into a model repository of Triton Inference Server, and stop",
    )
    parser.add_argument(
        "--triton-device",
        metavar="N",
        action="append",
        default=[],
        help="with --triton-repository: a GPU that gets an instance of the model, repeatable; or cpu (default: every "
        "GPU for a bundle with plans, else cpu)",
    )


def check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program where a device is given without a repository."""
    if options.triton_device and not options.triton_repository:
        parser.error("--triton-device is for --triton-repository DIR: give that, too")


def add_bundle(options: argparse.Namespace, check: Callable[[], None]) -> None:
    """Write a bundle into a model repository, unless its newest version is this bundle already."""
    parts = [flag_of(PartOptions, name) for name in given(options, PartOptions)]
    foreign = [*options_of_checkpoints(options), *parts, *flags(options, ["profile", "force"])]
    if foreign or options.backend != default_backend():
        raise InputError(
            f"--triton-repository writes a bundle as it is; leave {', '.join(foreign) or '--backend'} out, or change "
            "the bundle first"
        )
    from adacache_export.writing.triton_repository import CONFIG, add_to_repository, model_folder

    model = model_folder(options.triton_repository, options.source)
    check_apart([("--triton-repository", model)], (), [options.source])
    with PhaseProgress(check=check) as progress:
        made = add_to_repository(options.triton_repository, options.source, options.triton_device, progress)
    print(f"{made.folder} {'is' if made.new else 'was there, and is'} {options.source}")
    if made.config_differs:
        print(f"{made.folder.parent / CONFIG} was left as it is; to have it made anew, delete it and repeat this")
