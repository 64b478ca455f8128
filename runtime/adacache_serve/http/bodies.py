"""The body of ``POST /v1/videos``: JSON, or a form with the image as a file, as OpenAI's clients send it."""

import base64
import re
from collections.abc import AsyncGenerator
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from adacache_serve.orders.check import FieldError
from adacache_serve.orders.schema import CreateVideo

JSON, FORM = "application/json", "multipart/form-data"
FILES = ("image", "input_reference")  # names of the image; the second is OpenAI's
PLAIN_NBYTES = 128 * 1024  # JSON without the image; other requests wait while it is parsed
IMAGE = re.compile(rb'"image"\s*:\s*"([^"\\]*)"')
END_NBYTES = 1024  # of a form, in which its last boundary is; nothing of sense follows it
MOST_NAMED = 3  # unknown fields that an answer names


async def order_of(request: Request) -> CreateVideo:
    """Read the order from a request.

    Raises:
        HTTPException: 415, the body is neither JSON nor a form.
        RequestValidationError: fields are missing, unknown or not possible.
        FieldError: the body cannot be read; names the field, or "body".
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    media_type = kind.decode("latin-1").lower()
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"us-ascii") or media_type not in (JSON, FORM):
        raise HTTPException(415, f"the content type is not supported; send {JSON} or {FORM}, in UTF-8")
    if media_type == JSON:
        return await run_in_threadpool(of_json, await request.body())
    try:
        async with _Whole(request, options.get(b"boundary", b"")).form(
            max_files=len(FILES), max_fields=len(CreateVideo.model_fields), max_part_size=PLAIN_NBYTES
        ) as form:
            fields = form.multi_items()
            files = [(name, await value.read()) for name, value in fields if isinstance(value, UploadFile)]
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise FieldError("body", f"the form cannot be read: {error.detail}") from error
    return await run_in_threadpool(of_form, [pair for pair in fields if isinstance(pair[1], str)], files)


class _Whole(Request):
    """A request with a form, which is refused where its last boundary is missing.

    Starlette drops a part that has no end, so that an order would be accepted without its image.
    """

    def __init__(self, request: Request, boundary: bytes) -> None:
        super().__init__(request.scope, request.receive)
        self._last = b"--" + boundary + b"--"

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in pieces.

        Raises:
            FieldError: the form is cut off.
        """
        end = b""
        async for piece in super().stream():
            end = (end + piece)[-END_NBYTES:]
            yield piece
        if self._last not in end:
            raise FieldError("body", "the form is cut off, so something may be missing; send it with its last boundary")


def of_json(body: bytes) -> CreateVideo:
    """Read an order from JSON; errors are those of :func:`order_of`."""
    image = None
    if len(body) > PLAIN_NBYTES and (match := IMAGE.search(body)):
        image = match.group(1)
        body = body[: match.start(1)] + body[match.end(1) :]
    if len(body) > PLAIN_NBYTES:
        raise FieldError("body", f"the body is too large; at most {PLAIN_NBYTES} bytes are allowed beside the image")
    try:
        fields = from_json(body)
    except ValueError as error:
        raise FieldError("body", f"the body is not valid JSON: {error}") from error
    if isinstance(fields, dict) and image is not None:
        fields["image"] = image.decode("latin-1")
    return _validated(fields)


def of_form(fields: list[tuple[str, str | UploadFile]], files: list[tuple[str, bytes]]) -> CreateVideo:
    """Read an order from the parts of a form; errors are those of :func:`order_of`.

    Args:
        fields: names and values of the text fields.
        files: names of the fields that are files, and their contents.
    """
    names = [name for name, _ in [*fields, *files]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise FieldError(_short(twice[0]), "this field is given more than once")
    if wrong := [name for name, _ in files if name not in FILES]:
        raise FieldError(_short(wrong[0]), f"this field cannot be a file; send a file as {' or '.join(FILES)}")
    if len(files) > 1:
        raise FieldError(FILES[1], f"{FILES[0]} is given too; send only one of them")
    given: dict[str, Any] = dict(fields)
    for _, content in files:
        given["image"] = base64.b64encode(content).decode()
    return _validated(given, of_strings=True)


def _validated(fields: Any, of_strings: bool = False) -> CreateVideo:
    if isinstance(fields, dict) and (unknown := [name for name in fields if name not in CreateVideo.model_fields]):
        known = ", ".join(CreateVideo.model_fields)
        raise RequestValidationError(
            [
                {"loc": ("body", name), "msg": f"this field is unknown; known fields are {known}"}
                for name in unknown[:MOST_NAMED]
            ]
        )
    try:
        return CreateVideo.model_validate_strings(fields) if of_strings else CreateVideo.model_validate(fields)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in found]) from error


def _short(name: str) -> str:
    return name[:100]
