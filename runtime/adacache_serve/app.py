"""The web application: routes, errors, limits, and the service's life."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

import anyio.to_thread
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adacache_serve import page, videos
from adacache_serve.keys import Client
from adacache_serve.problems import add_problems, problem
from adacache_serve.service import Service


def create_app(service: Service, clients: tuple[Client, ...] | None) -> FastAPI:
    """
    Args:
        service: that it speaks for; it begins and stops with the application.
        clients: who may come; None = everybody.
    """

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        service.begin()
        yield
        await anyio.to_thread.run_sync(service.stop)

    app = FastAPI(title="adacache-serve", version="1", lifespan=life, redoc_url=None, docs_url=None)
    app.state.service, app.state.clients = service, clients
    app.include_router(videos.router)
    app.include_router(page.router)
    add_problems(app)
    app.add_middleware(_Limited, most=service.settings.max_body)

    @app.get("/healthz", response_class=PlainTextResponse)
    def healthz() -> str:
        """The process answers."""
        return "ok"

    @app.get("/readyz", response_class=PlainTextResponse, responses=videos.problems(503))
    def readyz() -> str:
        """Every model has made a warm-up video on some worker, and jobs are taken."""
        if not service.ready:
            why = "stops" if service.draining else "is still making its warm-up videos"
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, f"the server {why}", {"Retry-After": "5"})
        return "ready"

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return app


class _Limited:
    """Refuses bodies of more than ``most`` bytes, when they say so and when they don't."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"")
        came = 0

        async def limited() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self._most:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._refusal())
            return message

        if told.isdigit() and int(told) > self._most:
            await problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._refusal())(scope, receive, send)
            return
        await self._app(scope, limited, send)

    def _refusal(self) -> str:
        return f"a request may have at most {self._most} bytes"
