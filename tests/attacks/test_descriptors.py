"""File descriptors that run out"""

import base64
import io
import resource
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.helpers.serving.http_jobs import create, ended
from tests.helpers.serving.server_process import ServerProcess
from tests.helpers.waiting import HANG_SECONDS, until

Tries = Callable[[Iterable[Any]], Iterator[Any]]
FEW = 3  # descriptors, fewer than the server has open, and none of which is free


@pytest.fixture
def server(tmp_path: Path, model: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path, model)
    process.start()
    until(process.ready)
    yield process
    if process.process is not None and process.process.poll() is None:
        process.end(signal.SIGKILL)


@contextmanager
def no_descriptors(pid: int) -> Iterator[None]:
    """Let a process open no more files, pipes and connections; it keeps those that it has."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (FEW, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def picture() -> str:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "png")
    return base64.b64encode(content.getvalue()).decode()


def test_a_server_without_descriptors_says_so_and_goes_on_when_it_has_some(server: ServerProcess, tries: Tries) -> None:
    assert server.process is not None
    (worker,) = server.workers()
    order = {"prompt": "boat"}
    with httpx.Client(base_url=server.url, timeout=HANG_SECONDS) as client:  # its connection is open before
        done = create(client)
        assert ended(client, done)["status"] == "completed"
        accepted: list[str] = []
        answers: list[int] = []

        def connect() -> None:
            with suppress(httpx.TransportError):
                answers.append(httpx.get(f"{server.url}/healthz", timeout=HANG_SECONDS).status_code)

        threads = [threading.Thread(target=connect) for _ in range(5)]
        with no_descriptors(server.process.pid):
            for thread in threads:
                thread.start()
            asked: list[tuple[str, str, Any]] = [
                ("POST", "/v1/videos", {**order, "image": picture()}),
                ("GET", f"/v1/videos/{done}/content", None),
                ("POST", "/v1/videos", order),
                ("GET", f"/v1/videos/{done}", None),
                ("GET", "/v1/videos", None),
                ("GET", "/healthz", None),
                ("GET", "/metrics", None),
            ]
            for number, (method, path, body) in enumerate(tries(asked * 3)):
                answer = client.request(method, path, json=body)
                if number % len(asked) < 2:
                    assert answer.status_code == 503, answer.text
                assert answer.status_code in (200, 202, 503), path
                if answer.status_code == 503:
                    assert answer.headers["content-type"] == "application/problem+json"
                    assert int(answer.headers["retry-after"]) > 0
                if answer.status_code == 202:
                    accepted.append(answer.json()["id"])
        for thread in threads:
            thread.join()
        assert set(answers) <= {200}  # those that got an answer
        assert {ended(client, name)["status"] for name in accepted} <= {"completed"}
        assert {ended(client, name)["attempts"] for name in accepted} <= {1}
        assert client.get(f"/v1/videos/{done}/content").status_code == 200
    assert server.request("POST", "/v1/videos", json=order).status_code == 202  # on a new connection
    assert server.workers() == [worker]
    assert len(server.errors().splitlines()) < 2000  # a loop that spins writes as many in no time
    assert server.end() == 0
