"""The log: a JSON object a line, to standard error."""

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
    """What is logged inside, by whatever library, is of this job; so are warnings."""
    token = JOB.set(job)
    try:
        yield
    finally:
        JOB.reset(token)


class Lines(logging.Formatter):
    """With the job that it is about, and whatever else a record was given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
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
    """Of this process, warnings of the interpreter's included."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
