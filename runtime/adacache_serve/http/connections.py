"""A bound on open connections, and on the time that a client may take until its request is there.

uvicorn limits neither. A connection makes one request at a time, so that the bound on connections is one on requests
too. What takes long once a request is there is bounded elsewhere: its body in :mod:`adacache_serve.http.limits`, and a
client that does not read by the socket's options.
"""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from adacache_serve.http.limits import HEADERS
from adacache_serve.http.problems import RETRY_SECONDS, problem
from adacache_serve.settings import Settings


@dataclass(frozen=True)
class Bounds:
    """The bounds of a server's connections.

    Attributes:
        connections: number of open connections.
        header_seconds: time from the opening of a connection, or the first byte of its next request, until all headers
            are there; also the time for the rest of a body that was answered already.
    """

    connections: int
    header_seconds: float


def config_of(app: FastAPI, settings: Settings, linger_seconds: int | None = None) -> uvicorn.Config:
    """Return uvicorn's configuration.

    Args:
        app: the application.
        settings: the server's settings.
        linger_seconds: time that responses get when the server ends; None = no limit.
    """

    class ServedConnection(BoundedConnection):
        bounds = Bounds(settings.max_connections, settings.header_seconds)

    # no websockets: they would leave the limits of this file and of the middleware
    return uvicorn.Config(
        app, http=ServedConnection, ws="none", log_config=None, timeout_graceful_shutdown=linger_seconds
    )


class BoundedConnection(H11Protocol):
    """A connection that is closed when its next request does not come in time, or when another one needs the room.

    h11 limits the size of headers, which uvicorn's other parser does not.

    Attributes:
        bounds: the bounds, the same for all connections of a server.
    """

    bounds: Bounds
    _limit: asyncio.TimerHandle | None = None
    _since = 0.0  # the loop's time when the limit began
    _awaited: object = None  # h11's state of a client that is waited for

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection; where there are too many, close the one that has waited longest for its request."""
        super().connection_made(transport)
        if len(self.connections) <= self.bounds.connections or self._make_room():
            self._watch()
        else:
            self._end(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections are open; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection."""
        self._unset_limit()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Handle what has been received, and start or stop the time limit."""
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request; what is left of this one has a time limit too."""
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, as a problem."""
        self._end(HTTPStatus.BAD_REQUEST, msg)

    def _should_upgrade(self) -> bool:
        return False  # without the warning that uvicorn logs for each such request

    def _make_room(self) -> bool:
        waiting = [
            other
            for other in self.connections
            if isinstance(other, BoundedConnection) and other._limit is not None and other is not self
        ]
        if not waiting:
            return False
        longest = min(waiting, key=lambda other: other._since)
        longest._unset_limit()
        longest.transport.abort()
        return True

    def _watch(self) -> None:
        """Limit the time for the headers of the next request, and for the rest of a body that was answered already."""
        answered = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        awaited = self.conn.their_state if answered or self.conn.their_state is h11.IDLE else None
        if self.transport.is_closing():
            awaited = None
        if awaited is self._awaited:
            return
        self._unset_limit()
        self._awaited = awaited
        if awaited is not None:
            self._since = self.loop.time()
            self._limit = self.loop.call_later(self.bounds.header_seconds, self._expire)

    def _unset_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._limit = self._awaited = None

    def _expire(self) -> None:
        begun, _ = self.conn.trailing_data
        if self._awaited is h11.IDLE and begun:
            self._end(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the headers of the request did not arrive within {self.bounds.header_seconds:g} seconds",
            )
        self.transport.close()

    def _end(self, status: HTTPStatus, detail: str) -> None:
        """Answer with a problem, unless another answer has begun, and close the connection."""
        self._unset_limit()
        if self.cycle is None or self.cycle.response_complete:
            after = {"Retry-After": str(RETRY_SECONDS)} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
            answer = problem(status, detail, headers={**after, "Connection": "close"})
            lines = [b"%s: %s" % header for header in (*answer.raw_headers, *HEADERS.items())]
            first = b"HTTP/1.1 %d %s" % (status, status.phrase.encode())
            self.transport.write(b"\r\n".join([first, *lines, b"", bytes(answer.body)]))
        self.transport.close()
