"""An S3-compatible store on this machine, which can be told to fail."""

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.helpers.waiting import HANG_SECONDS

FAULTS = ("500", "503", "403", "cut", "lost", "truncated", "garbage")
BUCKET = "videos"


class S3Server:
    """The store, with a fault for requests of some methods.

    Attributes:
        fault: one of ``FAULTS`` or ``held``; None = it works. ``cut`` closes the connection, ``lost`` does so after the
            request was carried out, ``truncated`` and ``garbage`` spoil the answer, ``held`` waits for ``release``.
        methods: the methods that fail.
        failed: the methods of the requests that have failed.
    """

    def __init__(self, real: Callable[..., Iterable[bytes]]) -> None:
        self._real = real
        self.fault: str | None = None
        self.methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")
        self.failed: list[str] = []
        self.release = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        fault, method = self.fault, environ["REQUEST_METHOD"]
        if fault is None or method not in self.methods:
            return self._real(environ, start_response)
        self.failed.append(method)
        if fault == "held":
            assert self.release.wait(HANG_SECONDS)
            return self._real(environ, start_response)
        if fault.isdecimal():
            start_response(f"{fault} Failed", [("Content-Type", "application/xml")])
            return [b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"]
        if fault == "garbage":
            start_response("200 OK", [("Content-Type", "application/xml")])
            return [b"<<<" + bytes(range(256))]
        if fault in ("lost", "truncated"):
            answer = b"".join(self._real(environ, start_response if fault == "truncated" else ignored))
            if fault == "truncated" and answer:
                return [answer[: len(answer) // 2]]
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError


def ignored(*_head: object) -> Callable[[bytes], object]:
    return lambda _body: None


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run a store with an empty bucket, at the address that the environment names meanwhile."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    store = S3Server(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, store, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "an-id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        httpx.put(f"{url}/{BUCKET}").raise_for_status()
        try:
            yield store
        finally:
            store.release.set()
            server.shutdown()
            thread.join()
            server.server_close()
