"""Limits that every request must keep before it reaches a route, and headers that every answer has."""

import time
from collections.abc import Mapping
from http import HTTPStatus

import anyio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adacache_serve.http.hosts import Hosts, wrong_host, wrong_page
from adacache_serve.http.problems import RETRY_SECONDS, problem
from adacache_serve.settings import Settings

SMALL_NBYTES = 64 * 1024  # of each body that do not count, so that there is always room for orders without an image
HEADERS: Mapping[bytes, bytes] = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


class Limited:
    """Middleware that refuses bodies that are too large or do not arrive, and requests of other sites' pages.

    A body is too large if its length is stated so, or if more bytes arrive. The bodies of all requests together have a
    limit too, since they are kept until their requests have been answered. A length that is only stated takes no room,
    so that nobody takes any by a promise.
    """

    def __init__(self, app: ASGIApp, settings: Settings, hosts: Hosts | None) -> None:
        """Wrap an application.

        Args:
            app: the application.
            settings: the server's settings.
            hosts: the hosts that requests may name; None = any.
        """
        self._app, self._settings, self._hosts = app, settings, hosts
        self._held_nbytes = 0  # of all bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seconds = self._settings.body_seconds
        until = time.monotonic() + seconds
        nbytes, whole, answered = 0, False, False

        async def limited() -> Message:
            nonlocal nbytes, whole
            if whole or answered:  # now only the end of the connection can come
                return await receive()
            with anyio.move_on_after(max(0.0, until - time.monotonic())) as patience:
                message = await receive()
            if patience.cancelled_caught and answered:  # meanwhile, without the body
                return await receive()
            if patience.cancelled_caught:
                raise HTTPException(
                    HTTPStatus.REQUEST_TIMEOUT, f"the request did not arrive within {seconds:g} seconds"
                )
            before, nbytes = nbytes, nbytes + len(message.get("body", b""))
            self._held_nbytes += _counted(nbytes) - _counted(before)
            if nbytes > self._settings.max_body:
                raise self._too_large()
            if nbytes > SMALL_NBYTES and self._held_nbytes > self._settings.receive_nbytes:
                raise _no_room()
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
        if refusal is not None:
            await problem(refusal.status_code, refusal.detail, headers=refusal.headers)(scope, receive, hardened)
            return
        try:
            await self._app(scope, limited, hardened)
        finally:
            self._held_nbytes -= _counted(nbytes)

    def _refusal(self, scope: Scope) -> HTTPException | None:
        if self._hosts is not None and (why := wrong_host(scope["path"], scope["headers"], self._hosts)):
            return HTTPException(HTTPStatus.MISDIRECTED_REQUEST, why)
        if why := wrong_page(scope["method"], scope["headers"], self._hosts):
            return HTTPException(HTTPStatus.FORBIDDEN, why)
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return None
        if len(length) > 18 or int(length) > self._settings.max_body:
            return self._too_large()
        if _counted(int(length)) and self._held_nbytes + _counted(int(length)) > self._settings.receive_nbytes:
            return _no_room()
        return None

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the request is too large; at most {self._settings.max_body} bytes are allowed")


def _counted(nbytes: int) -> int:
    return max(0, nbytes - SMALL_NBYTES)


def _no_room() -> HTTPException:
    return HTTPException(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "too many large requests are arriving; try again later",
        {"Retry-After": str(RETRY_SECONDS)},
    )
