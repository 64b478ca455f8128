"""Connections and bodies that never end, and too many of them."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

from adacache_serve.http.limits import SMALL_NBYTES
from adacache_serve.keys import KeyFile, new_key
from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import served, service, write_model
from tests.helpers.waiting import HANG_SECONDS, until

MOST = 20  # connections
BODY = 2**20
EXPECT = "Expect: 100-continue"
Tries = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "fake"
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[httpx.Client]:
    """A server that needs a key, and gives headers little time and bodies less."""
    folder = tmp_path_factory.mktemp("impatient")
    key, line = new_key("alice")
    (folder / "keys").write_text(line)
    settings = Settings(folder / "data", header_seconds=3.0, body_seconds=0.3)
    with served(service(settings, model), KeyFile(folder / "keys")) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        yield client


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[httpx.Client]:
    """A server with few connections and little room for bodies, which waits longer than any test."""
    settings = Settings(
        tmp_path_factory.mktemp("narrow"),
        max_connections=MOST,
        max_body=BODY,
        receive_nbytes=2 * (BODY - 1 - SMALL_NBYTES),  # for two bodies that lack a byte
        header_seconds=HANG_SECONDS,
        body_seconds=HANG_SECONDS,
    )
    with served(service(settings, model)) as client:
        yield client


def connected(client: httpx.Client, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection((client.base_url.host, client.base_url.port), HANG_SECONDS)
    connection.sendall(sent)
    return connection


def head(client: httpx.Client, method: str, path: str, *more: str) -> bytes:
    key = client.headers.get("Authorization")
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *([f"Authorization: {key}"] if key else []), *more]
    return "\r\n".join([*lines, "", ""]).encode()


def received(connection: socket.socket) -> bytes:
    """Return all that comes until the server closes the connection."""
    with connection, connection.makefile("rb") as file:
        try:
            return file.read()
        except ConnectionResetError:
            return b""


def status_of(answer: bytes) -> int:
    first, _, rest = answer.partition(b"\r\n")
    body = rest.partition(b"\r\n\r\n")[2]
    status = int(first.split()[1])
    assert json.loads(body)["status"] == status  # a problem document
    return status


def test_idle_connections_are_closed(impatient: httpx.Client, tries: Tries) -> None:
    idle = [connected(impatient) for _ in tries(range(200))]
    assert impatient.get("/healthz").text == "ok"
    assert {received(connection) for connection in idle} == {b""}


def test_headers_that_do_not_end_are_given_up(impatient: httpx.Client, tries: Tries) -> None:
    beginnings = [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"\r\n\r\nGET", b"\x16\x03"]
    for connection in [connected(impatient, beginning) for beginning in tries(beginnings)]:
        assert status_of(received(connection)) in (400, 408)


def test_bodies_that_do_not_end_are_given_up(impatient: httpx.Client, tries: Tries) -> None:
    lengths = ["Content-Length: 100", "Content-Length: 9999999", "Transfer-Encoding: chunked"]
    kinds = ["application/json", "multipart/form-data; boundary=x"]
    opened = []
    for length, kind, sent in tries(product(lengths, kinds, [b"", b"2\r\n--\r\n"])):
        asked = head(impatient, "POST", "/v1/videos", length, f"Content-Type: {kind}")
        wrong = sent and kind != kinds[0] and length != lengths[2]  # these bytes begin no form, which is told at once
        opened.append((connected(impatient, asked + sent), 422 if wrong else 408))
    for connection, status in opened:
        assert status_of(received(connection)) == status
    others = [("GET", "/v1/videos/video_" + "0" * 32), ("GET", "/v1/models"), ("DELETE", "/v1/x")]
    asked_of = [head(impatient, method, path, lengths[0]) + b"-" for method, path in tries(others)]
    for connection in [connected(impatient, asked) for asked in asked_of]:
        assert received(connection).startswith(b"HTTP/1.1 ")  # answered at once, and then not waited for without end


def test_without_a_key_no_body_is_read(impatient: httpx.Client, tries: Tries) -> None:
    """Nothing of a body is ever sent, so an answer shows that none was waited for."""
    lengths = ["Content-Length: 9000000", "Transfer-Encoding: chunked", f"Content-Length: 9000000\r\n{EXPECT}"]
    kinds = ["application/json", "multipart/form-data; boundary=x", "text/plain"]
    opened = []
    for length, kind, key in tries(product(lengths, kinds, ["", "Authorization: Bearer ada-x\r\n"])):
        asked = f"POST /v1/videos HTTP/1.1\r\nHost: x\r\n{key}{length}\r\nContent-Type: {kind}\r\n\r\n"
        opened.append(connected(impatient, asked.encode()))
    for connection in opened:
        answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"100 Continue" not in answer


def test_any_number_of_idle_connections_leaves_room_for_requests(narrow: httpx.Client, tries: Tries) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(narrow, b"GET / HTTP/1.1\r\n")) for _ in tries(range(10 * MOST))]
        assert httpx.get(f"{narrow.base_url}/healthz").text == "ok"
        for connection in idle:
            connection.setblocking(False)

        def open_still() -> int:
            return sum(map(is_open, idle))

        until(lambda: open_still() < MOST)


def is_open(connection: socket.socket) -> bool:
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True  # neither an answer nor an end
    except ConnectionError:
        pass
    return False


def test_requests_beyond_the_limit_are_told_to_come_again(narrow: httpx.Client, tries: Tries) -> None:
    asked = head(narrow, "POST", "/v1/videos", "Content-Type: application/json", "Content-Length: 9", EXPECT)
    with ExitStack() as stack:
        for _ in range(MOST):
            busy = stack.enter_context(connected(narrow, asked))
            assert busy.recv(100).startswith(b"HTTP/1.1 100 ")  # now the server waits for the body
        for _ in tries(range(30)):
            answer = received(connected(narrow))
            assert status_of(answer) == 503
            assert b"\r\nretry-after: " in answer.lower()
    until(lambda: is_idle(narrow))


def is_idle(client: httpx.Client) -> bool:
    """Return whether the server takes as many connections as it may have, and closes none of them."""
    with ExitStack() as stack:
        opened = [stack.enter_context(connected(client)) for _ in range(MOST - 1)]
        try:
            answers = httpx.get(f"{client.base_url}/healthz").status_code == 200
        except httpx.TransportError:
            return False
        for connection in opened:
            connection.setblocking(False)
        return answers and all(map(is_open, opened))


def test_bodies_have_a_room_together(narrow: httpx.Client, tries: Tries) -> None:
    kind = "Content-Type: application/json"
    with ExitStack() as stack:
        asked = head(narrow, "POST", "/v1/videos", kind, f"Content-Length: {BODY}", EXPECT)
        for _ in range(2):
            holding = stack.enter_context(connected(narrow, asked))
            assert holding.recv(100).startswith(b"HTTP/1.1 100 ")
            holding.sendall(b" " * (BODY - 1))

        def full() -> bool:
            length = f"Content-Length: {SMALL_NBYTES + 1}"
            asked = head(narrow, "POST", "/v1/videos", kind, length, EXPECT)
            with connected(narrow, asked) as connection:
                return connection.recv(100).startswith(b"HTTP/1.1 503 ")

        until(full)
        for length in tries([f"Content-Length: {BODY}"] * 15 + ["Transfer-Encoding: chunked"] * 15):
            with connected(narrow, head(narrow, "POST", "/v1/videos", kind, length)) as connection:
                if "chunked" in length:
                    connection.sendall(b"%x\r\n" % BODY + b" " * 2 * SMALL_NBYTES)
                answer = connection.recv(2000)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: " in answer.lower()
        assert narrow.post("/v1/videos", json={"prompt": "a small order"}).status_code == 202
    until(lambda: not full())
    assert narrow.post("/v1/videos", json={"prompt": "a boat", "image": "A" * (BODY - 100)}).status_code == 422
