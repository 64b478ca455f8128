"""The web application: routes, errors and limits; the service starts and stops with it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

import anyio
import anyio.to_thread
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from adacache_serve.http import page, videos
from adacache_serve.http.document import document
from adacache_serve.http.hosts import Hosts
from adacache_serve.http.limits import Limited
from adacache_serve.http.problems import RETRY_SECONDS, add_problems, documented
from adacache_serve.http.schema import ModelList
from adacache_serve.http.views import model_of
from adacache_serve.jobs.service import Service
from adacache_serve.keys import KeyFile

DECODERS = 2  # processes that decode images at once
LOOKS = 4  # queries for streams of events at once


def create_app(service: Service, keys: KeyFile | None, hosts: Hosts | None) -> FastAPI:
    """Make the application.

    Args:
        service: the jobs; it starts and stops with the application.
        keys: the file of API keys; None = no key is needed.
        hosts: the hosts that requests may name; None = any.
    """

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await anyio.to_thread.run_sync(service.stop)

    app = FastAPI(
        title="adacache-serve",
        version="1",
        lifespan=life,
        redirect_slashes=False,
        redoc_url=None,  # these pages load scripts from other servers
        docs_url=None,
    )
    app.state.service, app.state.keys = service, keys
    app.state.decoding, app.state.looking = anyio.CapacityLimiter(DECODERS), anyio.CapacityLimiter(LOOKS)
    app.state.models = ModelList(data=[model_of(name, bundle) for name, bundle in service.bundles.items()])
    app.include_router(videos.router)
    app.include_router(page.router)
    add_problems(app)
    app.add_middleware(Limited, settings=service.settings, hosts=hosts)
    app.openapi = lambda: document(app, keys=keys is not None)  # type: ignore[method-assign]

    @app.get("/healthz", response_class=PlainTextResponse)
    def healthz() -> str:
        """Answer as long as the process runs."""
        return "ok"

    @app.get("/readyz", response_class=PlainTextResponse, responses=documented(503))
    def readyz() -> str:
        """Answer 200 once a worker has made a warm-up video of every model, while jobs are accepted."""
        if (why := service.why_not_ready()) is not None:
            after = {"Retry-After": str(RETRY_SECONDS)}
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, f"the server {why}", after)
        return "ready"

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Return metrics in Prometheus's text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return app
