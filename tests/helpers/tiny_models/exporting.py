"""Exports small models without the log of what torch does."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.helpers.originals.reference import DATA as DATA


def convert_quietly(source: Path, folder: Path, **options: Any) -> None:
    from adacache_export.convert import convert  # here: it imports torch, which few tests need
    from adacache_export.options import Options

    with unlogged():
        convert(source, folder, Options(**options))


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Pytest collects all that torch logs while tracing, which takes longer than tracing."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
