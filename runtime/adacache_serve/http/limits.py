"""Limits that every request must keep before it reaches a route, and headers that every answer has."""

import time
from collections.abc import Mapping
from http import HTTPStatus

import anyio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adacache_serve.http.hosts import Hosts, wrong_host, wrong_page
from adacache_serve.http.problems import problem

BODY_SECONDS = 120.0  # for the whole body to arrive
HEADERS: Mapping[bytes, bytes] = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


class Limited:
    """Middleware that refuses bodies that are too large or do not arrive, and requests of other sites' pages.

    A body is too large if its length is stated so, or if more bytes arrive.
    """

    def __init__(self, app: ASGIApp, most: int, hosts: Hosts | None) -> None:
        """Wrap an application.

        Args:
            app: the application.
            most: largest size of a body, in bytes.
            hosts: the hosts that requests may name; None = any.
        """
        self._app, self._most, self._hosts = app, most, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        until = time.monotonic() + BODY_SECONDS
        nbytes, whole, answered = 0, False, False

        async def limited() -> Message:
            nonlocal nbytes, whole
            if whole or answered:  # now only the end of the connection can come
                return await receive()
            with anyio.move_on_after(max(0.0, until - time.monotonic())) as patience:
                message = await receive()
            if patience.cancelled_caught:
                raise HTTPException(
                    HTTPStatus.REQUEST_TIMEOUT, f"the request did not arrive within {BODY_SECONDS:g} seconds"
                )
            nbytes += len(message.get("body", b""))
            if nbytes > self._most:
                raise self._too_large()
            whole = not message.get("more_body", False)
            return message

        async def hardened(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                present = {name for name, _ in message["headers"]}
                more = [(name, value) for name, value in HEADERS.items() if name not in present]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, limited, hardened)
        else:
            await problem(refusal.status_code, refusal.detail)(scope, receive, hardened)

    def _refusal(self, scope: Scope) -> HTTPException | None:
        told = dict(scope["headers"])
        length = told.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > self._most):
            return self._too_large()
        if self._hosts is not None and (why := wrong_host(scope["path"], scope["headers"], self._hosts)):
            return HTTPException(HTTPStatus.MISDIRECTED_REQUEST, why)
        if why := wrong_page(scope["method"], scope["headers"], self._hosts):
            return HTTPException(HTTPStatus.FORBIDDEN, why)
        return None

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the request is too large; at most {self._most} bytes are allowed")
