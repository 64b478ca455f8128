"""Servers and workers that are killed, and servers that are told to stop: no job is lost, made twice or stuck."""

import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from adacache_engines.bundle.files import open_bundle
from adacache_engines.contract.fake import FakeBackend
from adacache_runtime.caching.presets import PRESETS
from adacache_runtime.media.video import to_pixels, write_video
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from tests.helpers.serving.fake_server import functions, write_model
from tests.helpers.serving.server_process import LOG, ServerProcess, wait_until_gone
from tests.helpers.waiting import HANG_SECONDS, until

ORDERS = (
    {"prompt": "boat", "seed": 1, "steps": 2},
    {"prompt": "a small boat", "seed": 2, "policy": "interval-2"},
    {"prompt": "slow boat", "seed": 3, "steps": 5},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "fake"
    write_model(folder)
    return folder


@pytest.fixture
def process(tmp_path: Path, model: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path, model, queue=5000, queue_per_client=5000, attempts=1000, drain_seconds=2)
    yield server
    if server.process is not None and server.process.poll() is None:
        server.end(signal.SIGKILL)


def expected(model: Path, folder: Path) -> list[bytes]:
    """Return the videos of the orders, made by the runtime alone."""
    found = []
    for order in ORDERS:
        asked = {key: value for key, value in order.items() if key not in ("prompt", "policy")}
        request = Request(prompts=(str(order["prompt"]),), policy=PRESETS[str(order.get("policy", "never"))], **asked)
        result = Pipeline(open_bundle(model), FakeBackend(functions())).generate(request)
        write_video(folder / "alone.mp4", to_pixels(result.latents[0]), 24.0)
        found.append((folder / "alone.mp4").read_bytes())
    return found


class Clients:
    """Clients that create videos and delete some, and try again while the server is away."""

    def __init__(self, server: ServerProcess, jobs: int, deleting: float, seed: int, number: int = 1) -> None:
        self.server, self.jobs, self.deleting = server, jobs, deleting
        self.names: dict[str, int] = {}  # of jobs that the server said it stored, and which order
        self.deleted: dict[str, str] = {}  # and what it said when they were deleted: cancelled, or completed before
        self.threads = [
            threading.Thread(target=self._run, args=(range(first, jobs, number), random.Random(seed + first)))
            for first in range(number)
        ]
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join()

    def _run(self, numbers: range, chance: random.Random) -> None:
        with httpx.Client(timeout=HANG_SECONDS) as client:
            for number in numbers:
                which = chance.choices(range(len(ORDERS)), (6, 2, 2))[0]
                order = {**ORDERS[which], "priority": chance.randint(-3, 3)}
                key = {"Idempotency-Key": f"key-{number}"}
                name = self._ask(client, "POST", "/v1/videos", 202, json=order, headers=key)["id"]
                self.names[name] = which
                if chance.random() < self.deleting:
                    name = chance.choice(list(self.names)[-5:])
                    self.deleted[name] = self._ask(client, "DELETE", f"/v1/videos/{name}", 200)["status"]

    def _ask(self, client: httpx.Client, method: str, path: str, status: int, **rest: object) -> dict:
        while True:
            with suppress(httpx.TransportError, OSError):  # OSError: there is no port yet
                answer = client.request(method, f"{self.server.url}{path}", **rest)
                if answer.status_code not in (429, 503):
                    assert answer.status_code == status, answer.text
                    return answer.json()
            time.sleep(0.05)


def rows(server: ServerProcess) -> dict[str, sqlite3.Row]:
    """Read the jobs from the database, without the server."""
    with closing(sqlite3.connect(server.folder / "data" / "jobs.sqlite")) as database:
        database.row_factory = sqlite3.Row
        return {row["id"]: row for row in database.execute("SELECT * FROM jobs")}


def open_jobs(server: ServerProcess) -> int:
    return sum(row["status"] in ("queued", "in_progress") for row in rows(server).values())


def check(server: ServerProcess, clients: Clients, alone: list[bytes]) -> None:
    """Check the database, the files and the workers' log after everything has ended."""
    found = rows(server)
    assert set(found) == set(clients.names)
    assert len(found) == clients.jobs
    completed = {name for name, row in found.items() if row["status"] == "completed"}
    cancelled = {name for name, row in found.items() if row["status"] == "cancelled"}
    assert completed | cancelled == set(found)
    assert cancelled == {name for name, status in clients.deleted.items() if status == "cancelled"}
    kept = completed - set(clients.deleted)
    results = server.folder / "data" / "results"
    assert {file.name for file in results.iterdir()} == {f"{name}.mp4" for name in kept}
    for name in kept:
        assert (results / f"{name}.mp4").read_bytes() == alone[clients.names[name]]
    made = Counter(server.log("made"))
    assert set(made.values()) <= {1}
    # a worker can die between the record and its line in the log, so a few may be missing there, but none has two
    assert len(completed - set(made)) <= 3
    assert begun_after_made(server) == []
    assert list((server.folder / "data" / "spool").iterdir()) == []


def begun_after_made(server: ServerProcess) -> list[str]:
    made: set[str] = set()
    wrong = []
    for line in (server.folder / LOG).read_text().splitlines():
        word, _, attempt = line.partition(" ")
        job = attempt.rpartition("-")[0]
        if word == "made":
            made.add(job)
        elif job in made:
            wrong.append(line)
    return wrong


def kill_worker(server: ServerProcess, chance: random.Random) -> bool:
    workers = server.workers()
    if not workers:
        return False
    try:
        chance.choice(workers).kill()
    except psutil.NoSuchProcess:
        return False
    return True


@pytest.mark.slow
def test_a_few_jobs_outlive_their_workers_and_servers(process: ServerProcess, model: Path, tmp_path: Path) -> None:
    process.start()
    until(process.ready)
    clients = Clients(process, 60, 0.1, 1)
    until(lambda: len(process.log("made")) > 5)
    assert kill_worker(process, random.Random(1))
    made = len(process.log("made"))
    until(lambda: len(process.log("made")) > made + 3)
    workers = process.workers()
    assert workers
    assert process.end(signal.SIGKILL) == -signal.SIGKILL
    wait_until_gone(workers)
    process.start()
    clients.join()
    until(lambda: open_jobs(process) == 0)
    assert process.end() == 0
    check(process, clients, expected(model, tmp_path))


@pytest.mark.slow
def test_a_server_that_is_told_to_stop_drains(process: ServerProcess) -> None:
    process.settings["drain_seconds"] = 3
    process.start()
    until(process.ready)
    short, long = (
        process.request("POST", "/v1/videos", json={"prompt": "slow", "steps": steps}).json()["id"]
        for steps in (8, 900)
    )
    until(lambda: len(process.log("begun")) == 2)
    workers = process.workers()
    process.process.send_signal(signal.SIGTERM)
    until(lambda: not process.ready())
    refused = process.request("POST", "/v1/videos", json={"prompt": "boat"})
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "3")
    assert refused.headers["content-type"] == "application/problem+json"
    assert process.request("GET", "/healthz").status_code == 200
    events = process.request("GET", f"/v1/videos/{long}/events").text  # ends with the server
    assert '"status":"in_progress"' in events
    assert process.process.wait(HANG_SECONDS) == 0
    found = rows(process)
    assert {name: row["status"] for name, row in found.items()} == {short: "completed", long: "queued"}
    wait_until_gone(workers)
    assert "Traceback" not in process.errors()


@pytest.mark.slow
def test_a_second_signal_ends_the_server_at_once(process: ServerProcess) -> None:
    process.settings["drain_seconds"] = 10 * HANG_SECONDS  # a test that waited for it would have failed long before
    process.start()
    until(process.ready)
    name = process.request("POST", "/v1/videos", json={"prompt": "slow", "steps": 900}).json()["id"]
    until(lambda: process.log("begun"))
    workers = process.workers()
    process.process.send_signal(signal.SIGTERM)
    until(lambda: not process.ready())
    assert process.process.poll() is None
    assert process.end(signal.SIGTERM) == 0
    assert rows(process)[name]["status"] == "queued"
    wait_until_gone(workers)


@pytest.mark.slow
def test_a_worker_does_not_outlive_its_server_even_in_a_call(process: ServerProcess) -> None:
    process.start()
    until(process.ready)
    process.request("POST", "/v1/videos", json={"prompt": "stall"})
    until(lambda: process.log("begun"))
    workers = process.workers()
    process.end(signal.SIGKILL)
    wait_until_gone(workers)  # the call that it is in would last ten times longer than this waits


@pytest.mark.slow
def test_a_thousand_jobs_outlive_cancels_kills_and_restarts(
    process: ServerProcess, model: Path, tmp_path: Path
) -> None:
    process.settings.update(devices=["first", "second"], in_flight=8)
    chance = random.Random(7)
    done: Counter[str] = Counter()
    process.start()
    clients = Clients(process, 1000, 0.2, 7, 2)
    for kill in (True, False, True) * 3:
        if chance.random() < 0.8:  # else it is ended while it begins
            until(process.ready)
        for _ in range(chance.randint(1, 4)):
            time.sleep(chance.uniform(0.1, 1))
            done["worker killed"] += kill_worker(process, chance)
        time.sleep(chance.uniform(0, 1))
        workers = process.workers()
        if kill:
            process.end(signal.SIGKILL)
            done["server killed"] += 1
            wait_until_gone(workers)
        else:
            assert process.end() == 0
            done["server stopped"] += 1
        process.start()
    clients.join()
    until(lambda: open_jobs(process) == 0)
    assert process.end() == 0
    check(process, clients, expected(model, tmp_path))
    found = rows(process)
    again = sum(row["attempts"] > 1 for row in found.values())
    begun, made = len(process.log("begun")), len(process.log("made"))
    told = f"{dict(done)}; {again} jobs begun more than once, {begun} begun, {made} made"
    (tmp_path / "told").write_text(told)
    assert min(done["worker killed"], done["server killed"], done["server stopped"]) > 0
    assert again > 0
