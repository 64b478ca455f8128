"""The content of a video over HTTP: the file, or one range of it."""

import os
import re
from pathlib import Path

from fastapi.responses import FileResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from adacache_serve.device.video_file import MEDIA_TYPES

DELETED = "the content of this video was deleted"
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def file_response(path: Path, headers: Headers) -> FileResponse:
    """Return the response for a request with these headers.

    Raises:
        HTTPException: 410, the file was deleted; 416, the file does not have the range.
        OSError: the file cannot be opened now, which would be too late to tell once the answer has begun.
    """
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
    except FileNotFoundError as error:
        raise HTTPException(410, DELETED) from error
    kind = RangeResponse if is_range(headers, about.st_size) else WholeResponse
    kept = {"Cache-Control": "private, immutable"}
    return kind(path, headers=kept, media_type=MEDIA_TYPES[path.suffix], stat_result=about)


class RangeResponse(FileResponse):
    """A response with a file, or with one range of it."""

    max_ranges = 1


class WholeResponse(RangeResponse):
    """A response with the whole file, whatever range is asked for."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def is_range(headers: Headers, nbytes: int) -> bool:
    """Return whether one range is asked for; other values of the header may be ignored.

    Raises:
        HTTPException: 416, the file does not have the range.
    """
    match = RANGE.fullmatch(headers.get("range", ""))
    if match is None or match.groups() == ("", ""):
        return False
    first, last = match.groups()
    if first and last and int(first) > int(last):
        return False
    there = int(first) < nbytes if first else int(last) > 0
    if not there and "if-range" not in headers:
        raise HTTPException(
            416, f"the range is not in this file, which has {nbytes} bytes", {"Content-Range": f"bytes */{nbytes}"}
        )
    return there
