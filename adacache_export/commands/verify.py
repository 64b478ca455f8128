"""The job ``adacache-export --verify``: check the hashes and engines of a bundle again."""

import argparse
from collections.abc import Callable

from rich.console import Console

from adacache_export.commands.checkpoints import require_exporter
from adacache_export.commands.progress import PhaseProgress
from adacache_export.commands.tables import errors_table


def verify_bundle(options: argparse.Namespace, check: Callable[[], None]) -> None:
    """Compare every engine of a bundle with its torch stage, and print how far they are apart."""
    require_exporter()
    from adacache_export.verification.parity import check_errors
    from adacache_export.verification.verify import verify

    with PhaseProgress(check=check) as progress:
        graphs = verify(options.source, progress)
    Console().print(errors_table(graphs))
    check_errors(graphs)
    print(f"{options.source}: every file is unchanged and every engine agrees with its torch stage")
