"""The log: one JSON object per line, on standard error."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any

USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
JOB: ContextVar[str | None] = ContextVar("job", default=None)


@contextmanager
def about(job: str | None) -> Iterator[None]:
    """Add the name of a job to everything that is logged inside, by any library, warnings included."""
    token = JOB.set(job)
    try:
        yield
    finally:
        JOB.reset(token)


class Lines(logging.Formatter):
    """A formatter that writes a record as JSON, with its job and the fields given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for a record."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "job": JOB.get(),
            **{key: value for key, value in vars(record).items() if key not in USUAL},
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps({key: value for key, value in entry.items() if value is not None}, default=str)


def configure(level: int = logging.INFO) -> None:
    """Set up the log of this process, and send Python's warnings there too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
