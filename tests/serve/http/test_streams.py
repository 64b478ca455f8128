"""Clients that follow events, read slowly or disconnect cost little, and leave nothing behind."""

import asyncio
import gc
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from adacache_serve.commands import serve as cli
from adacache_serve.http import events as events_module
from adacache_serve.jobs.service import Service
from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import events, served, service, write_model
from tests.helpers.serving.http_jobs import create
from tests.helpers.waiting import HANG_SECONDS, until

SLOW = {"prompt": "slow", "steps": 30}
NBYTES = 64 * 2**20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder = tmp_path_factory.mktemp("server")
    write_model(folder / "models" / "fake")
    return service(Settings(folder / "data"), folder / "models" / "fake")


@pytest.fixture(scope="module")
def client(made: Service) -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as context:
        context.setattr(cli, "GONE_SECONDS", 2)
        listening = cli._listening("127.0.0.1", 0)
    with served(made, listening=listening) as client:
        yield client


def completed(client: httpx.Client, name: str) -> str:
    until(lambda: client.get(f"/v1/videos/{name}").json()["status"] == "completed")
    return name


@pytest.fixture(scope="module")
def large(client: httpx.Client, made: Service) -> str:
    """A video of 64 MB, as far as the server can tell."""
    name = completed(client, create(client))
    with (made.settings.data / "results" / f"{name}.mp4").open("r+b") as file:
        file.truncate(NBYTES)
    return name


def connected(client: httpx.Client, request: str, body: bytes = b"") -> socket.socket:
    """Send a request over a connection with a small receive buffer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(HANG_SECONDS)
    connection.connect((client.base_url.host, client.base_url.port))
    connection.sendall(f"{request}\r\nHost: localhost\r\n\r\n".encode() + body)
    return connection


def state() -> dict[str, int]:
    """Count what could be left behind: connections, open videos, tasks."""
    gc.collect()
    tasks = [found for found in gc.get_objects() if issubclass(type(found), asyncio.Task) and not found.done()]
    files = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            files.append(str(link.readlink()))
    sockets = sum(file.startswith("socket:") for file in files)
    return {"sockets": sockets, "videos": sum("/results/" in file for file in files), "tasks": len(tasks)}


@contextmanager
def leaving_nothing(client: httpx.Client) -> Iterator[None]:
    client.get("/healthz")  # the connection that stays
    before, threads = state(), threading.active_count()
    yield
    until(lambda: all(now <= before[name] for name, now in state().items()))
    assert threading.active_count() <= threads + 40 + 4 + 2  # idle ones of the pools


@pytest.mark.slow
@pytest.mark.parametrize("what", ["events", "content"])
def test_who_goes_away_in_the_middle_leaves_nothing(client: httpx.Client, large: str, what: str) -> None:
    name = create(client, **SLOW) if what == "events" else large
    with leaving_nothing(client):
        connections = [connected(client, f"GET /v1/videos/{name}/{what} HTTP/1.1") for _ in range(20)]
        for connection in connections:
            assert connection.recv(500).startswith(b"HTTP/1.1 200 OK")
            connection.close()
    if what == "events":
        client.delete(f"/v1/videos/{name}")


@pytest.mark.slow
def test_who_goes_away_in_the_middle_of_an_upload_leaves_nothing(
    client: httpx.Client, made: Service, caplog: pytest.LogCaptureFixture
) -> None:
    count = len(made.store.newest(None, 1000))
    kinds = ("application/json", "multipart/form-data; boundary=x")
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    with caplog.at_level(logging.WARNING), leaving_nothing(client):
        for kind in kinds * 5:
            head = f"POST /v1/videos HTTP/1.1\r\nContent-Type: {kind}\r\nContent-Length: 9000000"
            connected(client, head, part + b"a" * 3_000_000).close()
    assert len(made.store.newest(None, 1000)) == count
    assert [record.message for record in caplog.records if "failed" in record.message] == []


@pytest.mark.slow
def test_who_does_not_read_takes_no_memory_and_is_hung_up_on(client: httpx.Client, large: str) -> None:
    process = psutil.Process()
    with leaving_nothing(client):
        before, nbytes = state(), process.memory_info().rss
        connections = [connected(client, f"GET /v1/videos/{large}/content HTTP/1.1") for _ in range(8)]
        until(lambda: state()["videos"] > before["videos"])
        grown: list[int] = []

        def hung_up_on() -> bool:
            grown.append(process.memory_info().rss - nbytes)
            return state()["videos"] == before["videos"]

        until(hung_up_on)  # though the clients are still there
        assert max(grown) < NBYTES
        for connection in connections:
            connection.close()


def test_who_reads_slowly_gets_it_all(client: httpx.Client, large: str) -> None:
    with client.stream("GET", f"/v1/videos/{large}/content", headers={"Range": "bytes=0-9999999"}) as answer:
        came = 0
        for part in answer.iter_raw(2**20):
            came += len(part)
            time.sleep(0.05)
    assert came == 10**7


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ("bytes=0-9", 206, "bytes 0-9/67108864"),
        ("bytes=-10", 206, "bytes 67108854-67108863/67108864"),
        ("bytes=67108860-", 206, "bytes 67108860-67108863/67108864"),
        ("bytes=67108860-99999999999", 206, "bytes 67108860-67108863/67108864"),
        ("bytes=67108864-", 416, "bytes */67108864"),
        ("bytes=-0", 416, "bytes */67108864"),
        ("bytes=9-5", 200, None),
        ("bytes=0-1,5-6", 200, None),
        ("bytes=a-b", 200, None),
        ("bytes=-", 200, None),
        ("bytes=" + "9" * 500 + "-", 200, None),
        ("seconds=0-1", 200, None),
        ("", 200, None),
    ],
)
def test_ranges(client: httpx.Client, large: str, asked: str, status: int, told: str | None) -> None:
    with client.stream("GET", f"/v1/videos/{large}/content", headers={"Range": asked}) as answer:
        assert answer.status_code == status
        assert answer.headers.get("Content-Range") == told
        if status == 416:
            assert answer.headers["content-type"] == "application/problem+json"
        else:
            assert int(answer.headers["content-length"]) == (NBYTES if status == 200 else len(answer.read()))


def test_content_that_was_deleted_is_gone(client: httpx.Client) -> None:
    name = completed(client, create(client))
    assert client.delete(f"/v1/videos/{name}").json()["content"] is None
    answer = client.get(f"/v1/videos/{name}/content")
    assert (answer.status_code, answer.headers["content-type"]) == (410, "application/problem+json")


@contextmanager
def counted(made: Service) -> Iterator[Callable[[], int]]:
    """Count the queries for a job."""
    looks: list[str] = []
    get = made.store.get
    with pytest.MonkeyPatch.context() as context:
        context.setattr(made.store, "get", lambda name: (looks.append(name), get(name))[1])
        yield lambda: len(looks)


def test_listeners_to_a_running_job_do_not_ask_the_database(client: httpx.Client, made: Service) -> None:
    name = create(client, **SLOW)
    until(lambda: client.get(f"/v1/videos/{name}").json()["status"] == "in_progress")
    listeners = 12
    with counted(made) as looks, ThreadPoolExecutor(listeners) as pool:
        streams = [
            pool.submit(httpx.get, f"{client.base_url}/v1/videos/{name}/events", timeout=HANG_SECONDS)
            for _ in range(12)
        ]
        texts = {stream.result().text for stream in streams}
        assert looks() < 6 * listeners  # one to come in, one at each end, and few in between; more than ten polls each
    for text in texts:
        told = events(text)
        assert [data["call"] for kind, data in told if kind == "call"] == list(range(1, 31))
        assert [data["status"] for kind, data in told if kind == "status"] == ["in_progress", "completed"]


def test_a_listener_hears_all_of_a_job_from_queue_to_end(
    client: httpx.Client, made: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "QUIET_SECONDS", 0.1)
    blocking = [create(client, prompt="slow", steps=900) for _ in range(made.settings.in_flight)]
    name = create(client)
    lines = []
    with httpx.stream("GET", f"{client.base_url}/v1/videos/{name}/events", timeout=HANG_SECONDS) as stream:
        for line in stream.iter_lines():
            lines.append(line)
            if line == ": still here":
                for job in blocking:
                    client.delete(f"/v1/videos/{job}")
    assert ": still here" in lines
    told = events("\n".join(lines))
    statuses = [data["status"] for kind, data in told if kind == "status"]
    assert statuses[0] == "queued"
    assert statuses[-1] == "completed"
    assert [data["call"] for kind, data in told if kind == "call"] == list(range(1, 7))
    cancelled = create(client, prompt="slow", steps=900)
    threading.Timer(0.5, lambda: client.delete(f"/v1/videos/{cancelled}")).start()
    assert events(client.get(f"/v1/videos/{cancelled}/events").text)[-1][1]["status"] == "cancelled"


def test_who_comes_back_hears_what_is_new(client: httpx.Client) -> None:
    name = completed(client, create(client))
    path = f"/v1/videos/{name}/events"
    whole = client.get(path)
    assert whole.headers["content-type"].startswith("text/event-stream")
    assert whole.text.startswith("retry: ")
    identities = [line[4:] for line in whole.text.splitlines() if line.startswith("id: ")]
    assert identities == ["1-1", "1-2", "1-3", "1-4", "1-5", "1-6", "end"]
    for seen, calls in (
        ("1-4", [5, 6]),
        ("1-6", []),
        ("1-600", []),
        ("0-4", [1, 2, 3, 4, 5, 6]),
        ("x", [*range(1, 7)]),
    ):
        told = events(client.get(path, headers={"Last-Event-ID": seen}).text)
        assert [data["call"] for kind, data in told if kind == "call"] == calls
        assert told[-1][0] == "status"
    assert client.get(path, headers={"Last-Event-ID": "end"}).status_code == 204


@pytest.mark.slow
def test_a_listener_of_a_job_that_is_made_again_hears_the_new_calls(client: httpx.Client, made: Service) -> None:
    name = create(client, prompt="slow", steps=12)
    heard: list[str] = []
    with httpx.stream("GET", f"{client.base_url}/v1/videos/{name}/events", timeout=HANG_SECONDS) as stream:
        for line in stream.iter_lines():
            heard.append(line)
            if line == "id: 1-3":
                made.workers[0].kill()
    told = events("\n".join(heard))
    identities = [line[4:] for line in heard if line.startswith("id: ")]
    assert [each for each in identities if each.startswith("2-")] == [f"2-{call}" for call in range(1, 13)]
    statuses = [data["status"] for kind, data in told if kind == "status"]
    assert statuses[-4:] == ["in_progress", "queued", "in_progress", "completed"]
