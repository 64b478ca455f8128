"""Errors over HTTP: RFC 9457's problem+json, with the field of the request that caused the error."""

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from adacache_engines.errors import BundleError
from adacache_serve.disk.files import is_full, is_short
from adacache_serve.http.schema import Problem
from adacache_serve.jobs.results import ResultsError
from adacache_serve.jobs.service import BusyError, ConflictError, StoppingError
from adacache_serve.orders.check import FieldError

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5  # after an error that passes by itself
MOST_ERRORS, MOST_NAMED = 20, 100  # errors that are listed; characters of a client's name that an answer repeats
AFTER = {"Retry-After": {"description": "The seconds to wait before another try.", "schema": {"type": "integer"}}}
HEADERS: Mapping[int, Mapping[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    416: {"Content-Range": {"description": "The size of the file in bytes.", "schema": {"type": "string"}}},
    429: AFTER,
    503: AFTER,
    507: AFTER,
}


def problem(
    status: int,
    detail: str,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[Mapping[str, str]] = (),
) -> Response:
    """Return an error as a response."""
    body = Problem(
        title=HTTPStatus(status).phrase, status=status, detail=detail, field=field, errors=list(map(dict, errors))
    )
    return JSONResponse(body.model_dump(), status, dict(headers or {}), MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe these statuses as errors, for the OpenAPI document."""
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": content,
            **({"headers": dict(HEADERS[status])} if status in HEADERS else {}),
        }
        for status in statuses
    }


def invalid(found: Sequence[Mapping[str, Any]], inside: int = 0) -> Response:
    """Return pydantic's errors as a response, without the first ``inside`` parts of their locations."""
    errors = [
        {
            "field": ".".join(str(part) for part in error["loc"][inside:])[:MOST_NAMED] or "body",
            "detail": str(error["msg"]),
        }
        for error in found[:MOST_ERRORS]
    ]
    first = errors[0]
    return problem(
        HTTPStatus.UNPROCESSABLE_ENTITY, f"{first['field']}: {first['detail']}", first["field"], errors=errors
    )


def add_problems(app: FastAPI) -> None:
    """Make an application answer with problems where a route raises an error."""

    @app.exception_handler(FieldError)
    def _field(_request: Request, error: FieldError) -> Response:
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), error.field)

    @app.exception_handler(BusyError)
    def _busy(_request: Request, error: BusyError) -> Response:
        return problem(HTTPStatus.TOO_MANY_REQUESTS, str(error), headers={"Retry-After": str(error.retry_after)})

    @app.exception_handler(StoppingError)
    def _stopping(_request: Request, error: StoppingError) -> Response:
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), headers={"Retry-After": str(error.retry_after)})

    @app.exception_handler(ConflictError)
    def _conflict(_request: Request, error: ConflictError) -> Response:
        return problem(HTTPStatus.CONFLICT, str(error), "Idempotency-Key")

    @app.exception_handler(RequestValidationError)
    def _invalid(_request: Request, error: RequestValidationError) -> Response:
        return invalid(error.errors(), inside=1)

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if (
            error.status_code == HTTPStatus.METHOD_NOT_ALLOWED
        ):  # the router names the methods of only one of the path's routes
            headers["Allow"] = ", ".join(sorted(_methods(app, request)))
        return problem(error.status_code, str(error.detail), headers=headers)

    @app.exception_handler(ClientDisconnect)
    def _gone(_request: Request, _error: ClientDisconnect) -> Response:
        return problem(HTTPStatus.BAD_REQUEST, "the client closed the connection")  # nobody reads this

    @app.exception_handler(OSError)
    def _disk(request: Request, error: OSError) -> Response:
        if is_short(error):
            log.error("no file, process or memory is left", extra={"path": request.url.path}, exc_info=error)
            return problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the server has no file, process or memory left for this request; try again later",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        if not is_full(error):
            raise error
        log.error("the disk is full", extra={"path": request.url.path}, exc_info=error)
        return problem(
            HTTPStatus.INSUFFICIENT_STORAGE,
            "the server's disk is full, so nothing of this request was stored; try again later",
            headers={"Retry-After": str(RETRY_SECONDS)},
        )

    @app.exception_handler(BundleError)
    def _bundle(request: Request, error: BundleError) -> Response:
        log.error("a model's files cannot be read", extra={"path": request.url.path}, exc_info=error)
        return problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "the model's files cannot be read; the server's log says more",
            headers={"Retry-After": str(RETRY_SECONDS)},
        )

    @app.exception_handler(ResultsError)
    def _results(request: Request, error: ResultsError) -> Response:
        log.error("the place of videos does not answer: %s", error, extra={"path": request.url.path})
        return problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "the place where videos are kept does not answer; the server's log says more",
            headers={"Retry-After": str(RETRY_SECONDS)},
        )

    @app.exception_handler(DBAPIError)
    @app.exception_handler(NoConnectionError)
    def _database(request: Request, error: Exception) -> Response:
        log.error("database error", extra={"path": request.url.path}, exc_info=error)
        return problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "the database does not answer; the server's log says more",
            headers={"Retry-After": str(RETRY_SECONDS)},
        )

    @app.exception_handler(Exception)
    def _internal(request: Request, error: Exception) -> Response:
        log.exception("a request failed", extra={"path": request.url.path}, exc_info=error)
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the server's log says more")


def _methods(app: FastAPI, request: Request) -> set[str]:
    """Return the methods of a path."""
    path = request.url.path
    operations = {
        method.upper()
        for template, methods in app.openapi()["paths"].items()
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path)
        for method in methods
    }
    return operations or {"GET"}
