"""Images whose decoding takes as long as a test wants: the process that decodes them sleeps until it is killed."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from adacache_serve.orders import images

SLEEP = ("/bin/sh", "-c", "exec sleep 100000")


class Started(list[subprocess.Popen[bytes]]):
    """The processes that have been started to decode images.

    Attributes:
        most: the most of them that ran at once.
    """

    most = 0

    def running(self) -> int:
        """Return how many of them run."""
        return sum(process.returncode is None for process in self)


@contextmanager
def held() -> Iterator[Started]:
    """Let processes that decode images sleep; yield those that were started."""
    started, popen = Started(), subprocess.Popen

    def start(*arguments: Any, **named: Any) -> subprocess.Popen[bytes]:
        process = popen(*arguments, **named)
        if arguments[0][: len(SLEEP)] == [*SLEEP]:
            started.append(process)
            started.most = max(started.most, started.running())
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "PROGRAM", SLEEP)
        patch.setattr(subprocess, "Popen", start)
        yield started


def post(client: httpx.Client, **order: Any) -> socket.socket:
    """Send an order and return the connection, whose client may hang up before it is answered."""
    body = json.dumps(order).encode()
    head = "POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((client.base_url.host, client.base_url.port or 80))
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection
