"""The job ``adacache-export --verify``: check the hashes and engines of a bundle again."""

import argparse
from collections.abc import Callable

from adacache_engines.bundle.files import read_manifest
from adacache_export.commands.checkpoints import require_exporter
from adacache_export.commands.progress import PhaseProgress
from adacache_export.commands.tables import errors_table
from adacache_runtime.caching.signals.registry import SIGNALS, signal_from
from adacache_runtime.commands.console import console


def verify_bundle(options: argparse.Namespace, check: Callable[[], None]) -> None:
    """Compare every engine of a bundle with its torch stage, and print how far they are apart."""
    require_exporter()
    from adacache_export.verification.parity import check_errors
    from adacache_export.verification.verify import verify

    with PhaseProgress(check=check) as progress:
        own = [signal_from(choice) for choice in options.signals or ()]
        graphs = verify(options.source, progress, own)
    console().print(errors_table(graphs))
    check_errors(graphs)
    unknown = ", ".join({*read_manifest(options.source).signals} - {*SIGNALS, *(signal.name for signal in own)})
    others = f" but those of the signals {unknown}, which --signal MODULE:NAME lets it compare" if unknown else ""
    print(f"{options.source}: every file is unchanged and every engine agrees with its torch stage{others}")
