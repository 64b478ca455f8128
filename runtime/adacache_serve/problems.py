"""Errors over HTTP: RFC 9457's problem+json, with the field that they are about."""

import logging
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from adacache_serve.orders import FieldError
from adacache_serve.schema import Problem
from adacache_serve.service import BusyError, ConflictError, StoppingError

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"


def problem(
    status: int,
    detail: str,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
    errors: list[dict[str, str]] | None = None,
) -> Response:
    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, field=field, errors=errors or [])
    return JSONResponse(body.model_dump(), status, dict(headers or {}), MEDIA_TYPE)


def add_problems(app: FastAPI) -> None:
    """What is raised in a route, as an answer."""

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
        errors = [
            {"field": ".".join(str(part) for part in found["loc"][1:]) or "body", "detail": found["msg"]}
            for found in error.errors()
        ]
        first = errors[0]
        return problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"{first['field']}: {first['detail']}", first["field"], errors=errors
        )

    @app.exception_handler(HTTPException)
    def _http(_request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(Exception)
    def _internal(request: Request, error: Exception) -> Response:
        log.exception("a request failed", extra={"path": request.url.path}, exc_info=error)
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "an internal error; the server's log says more")
