"""A video over HTTP: the file, or one range of it."""

import re
from pathlib import Path

from fastapi.responses import FileResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from adacache_serve.device.film import MEDIA_TYPES

DELETED = "the content of this video was deleted"
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def file_response(path: Path, headers: Headers) -> FileResponse:
    """What a request with these headers gets.

    Raises:
        HTTPException: 410, the file is gone; 416, it has not the range.
    """
    try:
        about = path.stat()
    except FileNotFoundError as error:
        raise HTTPException(410, DELETED) from error
    kind = Content if is_range(headers, about.st_size) else Whole
    kept = {"Cache-Control": "private, immutable"}
    return kind(path, headers=kept, media_type=MEDIA_TYPES[path.suffix], stat_result=about)


class Content(FileResponse):
    """A file, or one range of it."""

    max_ranges = 1


class Whole(Content):
    """A file, whatever is asked for."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def is_range(headers: Headers, nbytes: int) -> bool:
    """Whether one range is asked for; whatever else is asked for may be ignored.

    Raises:
        HTTPException: 416, it is not there.
    """
    match = RANGE.fullmatch(headers.get("range", ""))
    if match is None or match.groups() == ("", ""):
        return False
    first, last = match.groups()
    if first and last and int(first) > int(last):
        return False
    there = int(first) < nbytes if first else int(last) > 0
    if not there and "if-range" not in headers:
        raise HTTPException(416, f"there are {nbytes} bytes", {"Content-Range": f"bytes */{nbytes}"})
    return there
