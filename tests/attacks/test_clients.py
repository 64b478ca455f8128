"""Clients with keys: the jobs of others, idempotency keys of others, and a key file that changes."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

from adacache_serve.keys import KeyFile, new_key
from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import served, service, write_model
from tests.helpers.serving.http_jobs import VIDEOS, create, ended
from tests.helpers.waiting import HANG_SECONDS, until

NAMES = ("alice", "bob", "mallory")
UNKNOWN = "video_" + "0" * 32
Tries = Callable[..., Any]
Clients = dict[str, httpx.Client]


@pytest.fixture(scope="module")
def lines() -> dict[str, tuple[str, str]]:
    """The key of each client, and its line in the file."""
    return {name: new_key(name) for name in NAMES}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, lines: dict[str, tuple[str, str]]) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    write_keys(path, lines, *NAMES)
    return path


@pytest.fixture(scope="module")
def clients(
    tmp_path_factory: pytest.TempPathFactory, file: Path, lines: dict[str, tuple[str, str]]
) -> Iterator[Clients]:
    folder = tmp_path_factory.mktemp("server")
    write_model(folder / "fake")
    with served(service(Settings(folder / "data"), folder / "fake"), KeyFile(file)) as client:
        made = {
            name: httpx.Client(
                base_url=client.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=HANG_SECONDS
            )
            for name, (key, _) in lines.items()
        }
        yield made
        for each in made.values():
            each.close()


def write_keys(path: Path, lines: dict[str, tuple[str, str]], *names: str) -> None:
    """Replace the file, as an editor does."""
    part = path.with_suffix(".part")
    part.write_text("".join(f"{lines[name][1]}\n" for name in names))
    part.replace(path)


def routes(client: httpx.Client) -> list[tuple[str, str]]:
    """Return the method and path of every route about one video, as the server's own document has them."""
    document = client.get("/openapi.json").json()
    return [
        (method.upper(), path)
        for path, operations in document["paths"].items()
        if "{video_id}" in path
        for method in operations
    ]


HEADERS: tuple[dict[str, str], ...] = (
    {},
    {"Range": "bytes=0-"},
    {"Range": "bytes=999999999-"},
    {"If-None-Match": "*"},
    {"If-Modified-Since": "Mon, 30 Nov 2037 00:00:00 GMT"},
    {"Last-Event-ID": "end"},
    {"Last-Event-ID": "1-1"},
    {"X-Forwarded-User": "alice"},
    {"X-HTTP-Method-Override": "DELETE"},
)


def test_the_jobs_of_another_are_like_jobs_that_never_were(clients: Clients, tries: Tries) -> None:
    alice, mallory = clients["alice"], clients["mallory"]
    finished, running = create(alice), create(alice, prompt="slow", steps=900)
    assert ended(alice, finished)["status"] == "completed"
    cancelled = create(alice, prompt="slow", steps=900)
    alice.delete(f"{VIDEOS}/{cancelled}")
    found = routes(alice)
    assert len(found) == 4
    for name, (method, path), headers in tries(product((finished, running, cancelled), found, HEADERS)):
        answers = [
            mallory.request(method, path.replace("{video_id}", each), headers=headers) for each in (name, UNKNOWN)
        ]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert answers[0].text.replace(name, UNKNOWN) == answers[1].text
        assert set(answers[0].headers) == set(answers[1].headers)
    for query in tries(({"after": finished}, {"after": running, "limit": 1}, {"after": cancelled, "status": "queued"})):
        answer = mallory.get(VIDEOS, params=query)
        assert answer.status_code == 404
        assert answer.json() == mallory.get(VIDEOS, params={**query, "after": UNKNOWN}).json() | {
            "detail": answer.json()["detail"]
        }
    for query in tries(({}, {"status": "completed"}, {"status": "in_progress"}, {"limit": 100})):
        assert mallory.get(VIDEOS, params=query).json()["data"] == []
    for name in tries(
        (finished.upper(), f"{finished} ", f"{finished}/", f"../{finished}", f"{finished}%00", finished[:-1])
    ):
        assert alice.get(f"{VIDEOS}/{name}").status_code == 404
    assert alice.get(f"{VIDEOS}/{running}").json()["status"] != "cancelled"
    assert alice.get(f"{VIDEOS}/{finished}/content").status_code == 200
    alice.delete(f"{VIDEOS}/{running}")


def test_an_idempotency_key_is_its_clients_own(clients: Clients, tries: Tries) -> None:
    order = {"prompt": "a boat", "seed": 1}
    for key in tries(("1", "x" * 200, "alice:1", "';drop-table-jobs;--", "%00", "../1", '"\\')):
        headers = {"Idempotency-Key": key}
        answers = {name: client.post(VIDEOS, json=order, headers=headers) for name, client in clients.items()}
        assert {answer.status_code for answer in answers.values()} == {202}
        ids = {name: answer.json()["id"] for name, answer in answers.items()}
        assert len(set(ids.values())) == len(NAMES)
        assert all("Idempotent-Replayed" not in answer.headers for answer in answers.values())
        for name, client in clients.items():
            again = client.post(VIDEOS, json=order, headers=headers)
            assert (again.json()["id"], again.headers["Idempotent-Replayed"]) == (ids[name], "true")
            conflict = client.post(VIDEOS, json={**order, "seed": 2}, headers=headers)
            assert (conflict.status_code, conflict.json()["field"]) == (409, "Idempotency-Key")
            assert ids[name] in conflict.json()["detail"]
            assert not any(ids[other] in conflict.text for other in NAMES if other != name)
        deleted = ids["alice"]
        clients["alice"].delete(f"{VIDEOS}/{deleted}")
        assert clients["alice"].post(VIDEOS, json=order, headers=headers).json()["id"] == deleted


def test_requests_of_all_clients_at_once_with_one_idempotency_key(clients: Clients, tries: Tries) -> None:
    asked = list(tries([(name, seed) for name in NAMES for seed in (1, 2)] * 8))

    def ask(given: tuple[str, int]) -> tuple[str, int, int, Any]:
        name, seed = given
        answer = clients[name].post(
            VIDEOS, json={"prompt": "a boat", "seed": seed}, headers={"Idempotency-Key": "all-at-once"}
        )
        return name, seed, answer.status_code, answer.json().get("id")

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, asked))
    assert {status for _, _, status, _ in answers} == {202, 409}
    for client in NAMES:  # one order of each client was first, and is its only job
        made = {(seed, job) for name, seed, status, job in answers if name == client and status == 202}
        assert len(made) == 1
        assert sum(name == client and status == 202 for name, _, status, _ in answers) == 8
    assert len({job for _, _, status, job in answers if status == 202}) == len(NAMES)


def test_a_key_file_that_changes_while_requests_come(
    clients: Clients, file: Path, lines: dict[str, tuple[str, str]], tries: Tries
) -> None:
    def statuses() -> list[int]:
        return [client.get(VIDEOS).status_code for client in clients.values()]

    def garbage() -> None:
        file.write_bytes(os.urandom(4096))

    def long_garbage() -> None:
        file.write_text("a" * 10**6 + "\n")

    def no_file() -> None:
        file.unlink()

    def folder() -> None:
        file.unlink(missing_ok=True)
        file.mkdir()

    def pipe() -> None:
        file.rmdir()
        os.mkfifo(file)

    def device() -> None:
        file.unlink()
        file.symlink_to("/dev/zero")

    def link_to_itself() -> None:
        file.unlink()
        file.symlink_to(file)

    assert statuses() == [200, 200, 200]
    running = create(clients["bob"], prompt="slow", steps=900)
    with clients["bob"].stream("GET", f"{VIDEOS}/{running}/events") as stream:  # longer than bob has a key
        parts = stream.iter_text()
        next(parts)
        for _ in tries(range(5)):
            write_keys(file, lines, "alice", "mallory")
            assert statuses() == [200, 401, 200]
            write_keys(file, lines, *NAMES)
            assert statuses() == [200, 200, 200]
        write_keys(file, lines, "alice")
        for damage in tries((garbage, long_garbage, no_file, folder, pipe, device, link_to_itself)):
            assert statuses() == [200, 401, 401]
            damage()
            assert statuses() == [200, 401, 401], damage.__name__  # what held before
        file.unlink()
        file.write_text("# nobody\n")
        assert statuses() == [401, 401, 401]
        assert httpx.get(f"{clients['alice'].base_url}/healthz").text == "ok"
        file.unlink()
        write_keys(file, lines, *NAMES)
        assert statuses() == [200, 200, 200]
        status = clients["bob"].delete(f"{VIDEOS}/{running}").json()["status"]
        last = "".join(parts).split("\n\n")[-2]  # a stream that was open has gone on until its job ended
        assert f'"status":"{status}"' in last


def test_wrong_keys_let_nobody_in(clients: Clients, lines: dict[str, tuple[str, str]], tries: Tries) -> None:
    key, line = lines["alice"]
    digest = line.split()[1]
    wrong = ["", "Bearer", f"Bearer {digest}", f"Bearer alice {digest}", f"Bearer  {key}"]
    wrong += [
        f"Basic {key}",
        key,
        f"Bearer {key},{key}",
        f"Bearer {key.upper()}",
        f"Bearer\t{key}",
        "Bearer " + "a" * 9000,
    ]
    url = clients["alice"].base_url
    document = httpx.get(f"{url}/openapi.json").json()
    operations = [
        (method.upper(), path.replace("{video_id}", UNKNOWN))
        for path, methods in document["paths"].items()
        if path.startswith("/v1/")
        for method in methods
    ]
    for given, (method, path) in tries(product(wrong, operations)):
        answer = httpx.request(method, f"{url}{path}", headers={"Authorization": given}, content=json.dumps({}))
        assert answer.status_code == 401, (given, method, path)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    until(lambda: clients["alice"].get("/v1/models").status_code == 200)
