"""The bounds on open connections and on the time until a request is there, by a clock that the test moves."""

import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from uvicorn.server import ServerState

from adacache_engines.errors import InputError
from adacache_serve.commands import serve as cli
from adacache_serve.http.connections import BoundedConnection, config_of
from adacache_serve.settings import Settings

SECONDS = 10.0
REQUEST = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"


class Timer:
    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when, self.call = when, call

    def cancel(self) -> None:
        self.call = lambda: None


class Loop:
    """A loop whose time only a test moves, and whose tasks never run."""

    def __init__(self) -> None:
        self.now, self.timers = 0.0, list[Timer]()

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + seconds, call))
        return self.timers[-1]

    def create_task(self, coroutine: Coroutine[Any, Any, None], **_: Any) -> "Loop":
        coroutine.close()
        return self

    def add_done_callback(self, _: object) -> None:
        pass

    def passes(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer.when <= self.now]
        self.timers = [timer for timer in self.timers if timer.when > self.now]
        for timer in due:
            timer.call()


class Transport:
    def __init__(self) -> None:
        self.written, self.closed, self.aborted = b"", False, False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, _: str) -> None:
        return None

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class Server:
    """The connections of a server."""

    def __init__(self, most: int = 100) -> None:
        settings = Settings(Path("data"), header_seconds=SECONDS, max_connections=most)
        self.config, self.state, self.loop = config_of(FastAPI(), settings), ServerState(), Loop()
        self.config.load()

    def connect(self, sent: bytes = b"") -> tuple[BoundedConnection, Transport]:
        made: Any = self.config.http_protocol_class
        connection: BoundedConnection = made(self.config, self.state, {}, self.loop)
        transport: Any = Transport()
        connection.connection_made(transport)
        if sent:
            connection.data_received(sent)
        return connection, transport


def answer(connection: BoundedConnection) -> None:
    """Answer the request of a connection."""
    for message in (
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]},
        {"type": "http.response.body"},
    ):
        with pytest.raises(StopIteration):  # it ends without waiting
            connection.cycle.send(message).send(None)  # type: ignore[arg-type]


def refused(transport: Transport, status: int) -> dict[str, Any]:
    head, _, body = transport.written.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    assert first.startswith(f"HTTP/1.1 {status} ")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert headers["content-type"] == "application/problem+json"
    assert (headers["connection"], headers["content-length"]) == ("close", str(len(body)))
    assert headers["x-content-type-options"] == "nosniff"
    assert ("retry-after" in headers) == (status == 503)
    assert transport.closed
    found: dict[str, Any] = json.loads(body)
    assert found["status"] == status
    return found


def test_who_sends_nothing_is_hung_up_on() -> None:
    server = Server()
    _, transport = server.connect()
    server.loop.passes(SECONDS - 0.1)
    assert not transport.closed
    server.loop.passes(0.1)
    assert transport.closed
    assert transport.written == b""


def test_headers_that_come_byte_by_byte_get_no_more_time() -> None:
    server = Server()
    connection, transport = server.connect(b"GET / HTTP/1.1\r\nX: ")
    for _ in range(9):
        server.loop.passes(1.0)
        connection.data_received(b"a")
    assert not transport.closed
    server.loop.passes(1.0)
    assert "within 10 seconds" in refused(transport, 408)["detail"]


def test_a_request_has_all_the_time_for_its_answer() -> None:
    server = Server()
    connection, transport = server.connect(REQUEST + b"body")
    server.loop.passes(1e6)
    assert not transport.closed
    answer(connection)
    assert transport.written.startswith(b"HTTP/1.1 200 ")
    assert not transport.closed


def test_the_next_request_has_a_limit_of_its_own() -> None:
    server = Server()
    connection, transport = server.connect()
    for _ in range(5):
        server.loop.passes(SECONDS - 6.0)
        connection.data_received(REQUEST + b"body")
        answer(connection)
    assert not transport.closed
    connection.data_received(b"GET")
    for _ in range(9):
        server.loop.passes(1.0)
        connection.data_received(b"a")
    assert not transport.closed
    transport.written = b""
    server.loop.passes(1.0)
    refused(transport, 408)


def test_the_rest_of_a_body_that_was_answered_has_a_limit() -> None:
    server = Server()
    connection, transport = server.connect(REQUEST)
    server.loop.passes(1e6)
    answer(connection)
    connection.data_received(b"b")
    server.loop.passes(SECONDS - 1.0)
    connection.data_received(b"o")
    assert not transport.closed
    server.loop.passes(1.0)
    assert transport.closed


def test_a_body_that_comes_after_its_answer_is_followed_by_the_next_request() -> None:
    server = Server()
    connection, transport = server.connect(REQUEST)
    answer(connection)
    server.loop.passes(4.0)
    connection.data_received(b"body" + REQUEST)
    server.loop.passes(1e6)
    assert not transport.closed
    connection.data_received(b"body")
    answer(connection)
    assert transport.written.count(b"HTTP/1.1 200 ") == 2


def test_one_connection_too_many_closes_the_one_that_has_waited_longest() -> None:
    server = Server(most=3)
    busy, first = server.connect(REQUEST)
    server.loop.passes(1.0)
    waiting, longest = server.connect(b"GET / HTT")
    server.loop.passes(1.0)
    _, other = server.connect()
    server.loop.passes(1.0)
    _, new = server.connect()
    assert [transport.closed for transport in (first, longest, other, new)] == [False, True, False, False]
    waiting.connection_lost(None)
    answer(busy)
    server.loop.passes(1.0)
    _, newest = server.connect()
    assert [transport.closed for transport in (first, other, new, newest)] == [False, True, False, False]


def test_where_all_connections_have_requests_one_more_is_refused() -> None:
    server = Server(most=3)
    busy = [server.connect(REQUEST) for _ in range(3)]
    connection, transport = server.connect()
    refused(transport, 503)
    connection.connection_lost(None)
    answer(busy[1][0])
    _, transport = server.connect()
    assert not transport.closed


def test_what_is_not_http_is_refused_as_a_problem() -> None:
    server = Server()
    for sent in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n", b"A" * 2**17):
        _, transport = server.connect(sent)
        refused(transport, 400)


def test_a_wrong_chunk_in_the_middle_of_an_answer_ends_the_connection() -> None:
    server = Server()
    chunked = REQUEST.replace(b"Content-Length: 4", b"Transfer-Encoding: chunked")
    connection, transport = server.connect(chunked)
    start = {"type": "http.response.start", "status": 200, "headers": []}
    with pytest.raises(StopIteration):
        connection.cycle.send(start).send(None)  # type: ignore[arg-type]
    connection.data_received(b"no chunk\r\n")
    assert transport.closed
    assert b" 400 " not in transport.written


def test_more_connections_than_the_system_allows_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(256, 4096)]
    monkeypatch.setattr(cli.resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(cli.resource, "setrlimit", lambda _, limit: limits.append(limit))
    cli.allow_files(500)
    assert limits[1:] == [(800, 4096)]
    cli.allow_files(500)
    assert limits[1:] == [(800, 4096)]
    with pytest.raises(InputError, match="--max-connections 5000 needs 5300 open files, but the system allows 4096"):
        cli.allow_files(5000)
