"""What every request has to keep to, before a route sees it, and the headers that every answer has."""

import time
from collections.abc import Mapping
from http import HTTPStatus

import anyio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adacache_serve.http.problems import problem

BODY_SECONDS = 120.0  # in which the whole body has to come
SAFE = ("GET", "HEAD", "OPTIONS")
HEADERS: Mapping[bytes, bytes] = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


class Limited:
    """Refuses bodies of more than ``most`` bytes, when they say so and when they don't; bodies that do not come; and
    what another site's page makes a browser send, since a form needs nobody's permission for that.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        until = time.monotonic() + BODY_SECONDS
        nbytes, whole, answered = 0, False, False

        async def limited() -> Message:
            nonlocal nbytes, whole
            if whole or answered:  # what comes now is that the client has gone
                return await receive()
            with anyio.move_on_after(max(0.0, until - time.monotonic())) as patience:
                message = await receive()
            if patience.cancelled_caught:
                raise HTTPException(
                    HTTPStatus.REQUEST_TIMEOUT, f"the request did not come within {BODY_SECONDS:g} seconds"
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
        if scope["method"] not in SAFE and told.get(b"sec-fetch-site") in (b"cross-site", b"same-site"):
            return HTTPException(HTTPStatus.FORBIDDEN, "this is the request of another site's page")
        return None

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"a request may have at most {self._most} bytes")
