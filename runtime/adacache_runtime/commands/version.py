"""The ``--version`` of every command."""

import argparse

from adacache_runtime.version import project_version


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add ``--version``, which prints the command's name and the project's version and stops."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {project_version()}")
