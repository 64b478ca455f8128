"""Requests: their fields, keys, pages and sizes, and the form of every refusal."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from adacache_serve.http.bodies import PLAIN_NBYTES
from adacache_serve.jobs.service import Service
from adacache_serve.keys import KeyFile, new_key
from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import served, service, write_model
from tests.helpers.waiting import HANG_SECONDS, until

ORDER = {"prompt": "a boat"}


MOST = 2**20


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The API keys of alice, who may do everything, of bob, and of carol, who may have two jobs waiting."""
    found = {}
    lines = ["# who may come", ""]
    for name, more in (("alice", "10"), ("bob", "0"), ("carol", "0 2")):
        found[name], line = new_key(name)
        lines.append(f"{line.rsplit(' ', 1)[0]} {more}")
    found["file"] = str(tmp_path_factory.mktemp("keys") / "keys")
    Path(found["file"]).write_text("\n".join(lines))
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder = tmp_path_factory.mktemp("server")
    write_model(folder / "models" / "fake")
    return service(Settings(folder / "data", max_body=MOST, in_flight=1), folder / "models" / "fake")


@pytest.fixture(scope="module")
def alice(made: Service, keys: dict[str, str]) -> Iterator[httpx.Client]:
    with served(made, KeyFile(Path(keys["file"]))) as client:
        client.headers["Authorization"] = f"Bearer {keys['alice']}"
        yield client


@pytest.fixture
def bob(alice: httpx.Client, keys: dict[str, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=alice.base_url, headers={"Authorization": f"Bearer {keys['bob']}"}) as client:
        yield client


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    body = answer.json()
    assert body["status"] == status
    return body


def cancel_all(client: httpx.Client) -> None:
    for status in ("queued", "in_progress"):
        for video in client.get("/v1/videos", params={"limit": 100, "status": status}).json()["data"]:
            client.delete(f"/v1/videos/{video['id']}")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", " \n"),
        ("prompt", "a\0b"),
        ("prompt", "a" * 4001),
        ("prompt", None),
        ("prompt", 3),
        ("negative_prompt", "\0"),
        ("negative_prompt", "this model takes none"),
        ("model", "../fake"),
        ("model", "a" * 201),
        ("size", "0x0"),
        ("size", "99999x99999"),
        ("size", "8x"),
        ("size", "720p"),
        ("size", "1" * 5000),
        ("aspect", "9:16"),
        ("seconds", 0),
        ("seconds", "4s"),
        ("seconds", "1e2"),
        ("seconds", 1e-300),
        ("seconds", 601),
        ("seconds", 17.25),
        ("seconds", True),
        ("frames", 10**400),
        ("frames", 3.5),
        ("frames", 0),
        ("frames", "4"),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", True),
        ("steps", 0),
        ("steps", 1001),
        ("guidance", -0.5),
        ("guidance", float("nan")),
        ("guidance", float("inf")),
        ("policy", "adacache-quick"),
        ("policy", "/etc/passwd.json"),
        ("policy", "os:system"),
        ("policy", "never+warm-up"),
        ("policy", "never+warm-up=9.9.9"),
        ("policy", "never+warm-up=-1"),
        ("policy", "never" + "+extrapolate" * 20),
        ("image", "no base64"),
        ("image", ""),
        ("image", "data:image/png,abc"),
        ("image_at", 0),
        ("priority", 11),
        ("deadline_seconds", 0),
        ("deadline_seconds", 1e12),
        ("file", "/etc/passwd"),
    ],
)
def test_a_field_that_is_not_possible_is_named(alice: httpx.Client, field: str, value: object) -> None:
    body = json.dumps({**ORDER, field: value})
    refused = problem(alice.post("/v1/videos", content=body, headers={"Content-Type": "application/json"}), 422)
    assert refused["field"] == field
    assert refused["detail"]
    assert not alice.get("/v1/videos", params={"status": "queued"}).json()["data"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"a boat"',
        b"[" * 100_000,
        b'{"prompt":' * 50_000,
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff"}',
        b'{"prompt": NaN-}',
        b'{"prompt": "a", "seed": ' + b"9" * 9000 + b"}",
        b'{"prompt": "a", "junk": "' + b"a" * PLAIN_NBYTES + b'"}',
        b"{" + b",".join(b'"%d": 1' % i for i in range(60_000)) + b"}",
    ],
)
def test_a_body_that_is_no_order_is_refused(alice: httpx.Client, body: bytes) -> None:
    refused = problem(alice.post("/v1/videos", content=body, headers={"Content-Type": "application/json"}), 422)
    assert refused["field"] == "body"
    assert len(refused["detail"]) < 500


def test_unknown_fields_are_named_and_no_more_is_said_than_need_be(alice: httpx.Client) -> None:
    refused = problem(alice.post("/v1/videos", json={**ORDER, **{f"x{i}{'y' * 500}": 1 for i in range(50)}}), 422)
    assert refused["field"].startswith("x0yyy")
    assert len(json.dumps(refused)) < 2000


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/json; charset=utf-16", "application/x-www-form-urlencoded"]
)
def test_other_kinds_of_bodies_are_refused(alice: httpx.Client, kind: str) -> None:
    problem(alice.post("/v1/videos", content=json.dumps(ORDER), headers={"Content-Type": kind}), 415)


def test_a_form_is_an_order_too(alice: httpx.Client) -> None:
    order = {"prompt": "a bøat", "seconds": "0.25", "size": "4x2", "seed": "7", "steps": "2"}
    order |= {"sampler": "euler", "guidance": "1.5"}
    answer = alice.post("/v1/videos", files={name: (None, value) for name, value in order.items()})
    assert answer.status_code == 202, answer.text
    wanted = {"prompt": "a bøat", "seconds": 0.25, "size": "4x2", "seed": 7, "steps": 2}
    wanted |= {"sampler": "euler", "guidance": 1.5}
    assert {name: answer.json()["request"][name] for name in wanted} == wanted
    as_json = alice.post("/v1/videos", json={**wanted, "seconds": "0.25"})
    assert as_json.json()["request"] == answer.json()["request"]


@pytest.mark.parametrize(
    ("files", "field"),
    [
        ([("prompt", (None, "a")), ("prompt", (None, "b"))], "prompt"),
        ([("prompt", (None, "a")), ("seed", (None, "x"))], "seed"),
        ([("prompt", ("prompt.txt", b"a"))], "prompt"),
        ([("prompt", (None, "a")), ("path", ("p.png", b"a"))], "path"),
        ([("prompt", (None, "a")), ("image", ("../../etc/passwd", b"#EXTM3U\n/etc/passwd"))], "image"),
        ([("prompt", (None, "a")), ("image", ("a", b"a")), ("input_reference", ("b", b"b"))], "input_reference"),
        ([("prompt", (None, "a")), *((f"f{i}", (f"f{i}", b"a")) for i in range(3))], "body"),
        ([("prompt", (None, "a")), *((f"f{i}", (None, "a")) for i in range(40))], "body"),
        ([("prompt", (None, "a\0b"))], "prompt"),
    ],
)
def test_a_form_that_is_no_order_is_refused(alice: httpx.Client, files: Any, field: str) -> None:
    assert problem(alice.post("/v1/videos", files=files), 422)["field"] == field


def test_a_form_with_two_files_of_one_name_is_refused(alice: httpx.Client) -> None:
    files = [("prompt", (None, "a")), ("image", ("a.png", b"a")), ("image", ("b.png", b"b"))]
    refused = problem(alice.post("/v1/videos", files=files), 422)
    assert (refused["field"], refused["detail"]) == ("image", "this field is given more than once")


@pytest.mark.parametrize("cut", [8, 7, 4])
def test_a_form_that_is_cut_off_is_refused(alice: httpx.Client, cut: int) -> None:
    """Its last part has no end, and would be left out by the parser."""
    parts = [b'name="prompt"\r\n\r\na boat', b'name="image"; filename="a.png"\r\n\r\npixels']
    whole = b"".join(b"--x\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    refused = problem(alice.post("/v1/videos", content=whole[:-cut], headers=kind), 422)
    assert refused["field"] == "body"
    assert problem(alice.post("/v1/videos", content=whole, headers=kind), 422)["field"] == "image"


@pytest.mark.parametrize("body", [b"", b"--x\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--", b"junk"])
def test_a_form_that_is_none_is_refused(alice: httpx.Client, body: bytes) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert problem(alice.post("/v1/videos", content=body, headers=kind), 422)["field"] in ("body", "prompt")


def test_large_bodies_are_refused_however_they_come(alice: httpx.Client) -> None:
    kind = {"Content-Type": "application/json"}
    problem(alice.post("/v1/videos", content=b" " * (MOST + 1), headers=kind), 413)

    def chunks(first: bytes = b" ") -> Iterator[bytes]:
        yield first
        for _ in range(2 * MOST // 2**16):
            yield b" " * 2**16

    problem(alice.post("/v1/videos", content=chunks(), headers=kind), 413)
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    problem(alice.post("/v1/videos", content=chunks(part), headers=form), 413)


def test_headers_have_a_limit(alice: httpx.Client) -> None:
    for key in ("", "a" * 201, "with space", "ümlaut".encode("latin-1")):
        refused = problem(alice.post("/v1/videos", json=ORDER, headers={"Idempotency-Key": key}), 422)
        assert refused["field"] == "idempotency-key"
    name = alice.post("/v1/videos", json=ORDER).json()["id"]
    problem(alice.get(f"/v1/videos/{name}/events", headers={"Last-Event-ID": "1" * 300}), 422)
    host, port = alice.base_url.host, alice.base_url.port
    with socket.create_connection((host, port)) as connection:
        connection.settimeout(HANG_SECONDS)
        try:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2**20)
            assert b" 400 " in connection.recv(100)
        except ConnectionError:
            pass  # the server hung up before it had read all


def test_another_sites_page_may_not_send_orders(alice: httpx.Client) -> None:
    for site in ("cross-site", "same-site"):
        problem(alice.post("/v1/videos", json=ORDER, headers={"Sec-Fetch-Site": site}), 403)
    assert alice.post("/v1/videos", json=ORDER, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 202


def test_paths_and_methods_that_there_are_not(alice: httpx.Client) -> None:
    for path in ("/v1", "/v1/video", "/docs", "/redoc", "/../etc/passwd", "/v1/videos/", "/static/a.js"):
        problem(alice.get(path, follow_redirects=False), 404)
    for name in ("x", "video_" + "0" * 32, "..%2f..%2fetc%2fpasswd", "video_%00", "a" * 3000):
        for method, rest in (("GET", ""), ("DELETE", ""), ("GET", "/content"), ("GET", "/events")):
            assert len(problem(alice.request(method, f"/v1/videos/{name}{rest}"), 404)["detail"]) < 200
    for method, path, allowed in (
        ("PATCH", "/v1/videos", "GET, POST"),
        ("PUT", "/v1/videos/x", "DELETE, GET"),
        ("POST", "/v1/models", "GET"),
    ):
        answer = alice.request(method, path)
        problem(answer, 405)
        assert answer.headers["Allow"] == allowed


def test_no_answer_may_load_anything(alice: httpx.Client) -> None:
    for path in ("/healthz", "/v1/models", "/v1/videos/x", "/openapi.json"):
        assert alice.get(path).headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_the_same_request_with_the_same_key_is_one_job(alice: httpx.Client, bob: httpx.Client) -> None:
    headers = {"Idempotency-Key": "one"}
    first = alice.post("/v1/videos", json=ORDER, headers=headers)
    assert "Idempotent-Replayed" not in first.headers
    again = alice.post("/v1/videos", json=ORDER, headers=headers)
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (202, "true")
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["Location"] == first.headers["Location"]
    assert problem(alice.post("/v1/videos", json={"prompt": "a"}, headers=headers), 409)["field"] == "Idempotency-Key"
    assert bob.post("/v1/videos", json=ORDER, headers=headers).json()["id"] != first.json()["id"]


def test_requests_at_the_same_time_with_the_same_key_are_one_job(alice: httpx.Client) -> None:
    headers = {"Idempotency-Key": "many"}
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: alice.post("/v1/videos", json=ORDER, headers=headers), range(12)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("Idempotent-Replayed" not in answer.headers for answer in answers) == 1


def test_pages_have_every_job_once_the_newest_first(bob: httpx.Client) -> None:
    made = [bob.post("/v1/videos", json={"prompt": f"boat {i}"}).json()["id"] for i in range(7)]
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = bob.get("/v1/videos", params={"limit": 3, **after}).json()
        seen += [video["id"] for video in page["data"]]
        if not page["has_more"]:
            assert page["last_id"] is None
            break
        assert page["last_id"] == page["data"][-1]["id"]
        after = {"after": page["last_id"]}
    assert seen[:7] == made[::-1]
    assert len(seen) == len(set(seen))
    for wrong in ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"status": "done"}, {"after": "a" * 65}):
        assert problem(bob.get("/v1/videos", params=wrong), 422)["field"] == next(iter(wrong))


def test_nobody_sees_the_jobs_of_another(alice: httpx.Client, bob: httpx.Client) -> None:
    name = alice.post("/v1/videos", json=ORDER).json()["id"]
    for method, path in (
        ("GET", f"/v1/videos/{name}"),
        ("DELETE", f"/v1/videos/{name}"),
        ("GET", f"/v1/videos/{name}/content"),
        ("GET", f"/v1/videos/{name}/events"),
        ("GET", f"/v1/videos?after={name}"),
    ):
        assert name in problem(bob.request(method, path), 404)["detail"]
    assert name not in bob.get("/v1/videos", params={"limit": 100}).text
    assert alice.get(f"/v1/videos/{name}").status_code == 200


def test_who_has_no_key_gets_nothing(alice: httpx.Client, keys: dict[str, str]) -> None:
    for given in (None, "", "Bearer", "Bearer x", f"Basic {keys['alice']}", f"Bearer {keys['alice']}x"):
        headers = {} if given is None else {"Authorization": given}
        for method, path in (("GET", "/v1/models"), ("GET", "/v1/videos"), ("POST", "/v1/videos")):
            answer = httpx.request(method, f"{alice.base_url}{path}", headers=headers)
            problem(answer, 401)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    latin = httpx.get(f"{alice.base_url}/v1/models", headers={"Authorization": b"Bearer \xff\xfe"})
    problem(latin, 401)
    assert httpx.get(f"{alice.base_url}/healthz").text == "ok"


def test_a_key_has_its_limits(alice: httpx.Client, bob: httpx.Client, keys: dict[str, str]) -> None:
    assert problem(bob.post("/v1/videos", json={**ORDER, "priority": 1}), 422)["field"] == "priority"
    assert alice.post("/v1/videos", json={**ORDER, "priority": 10}).status_code == 202
    with httpx.Client(base_url=alice.base_url, headers={"Authorization": f"Bearer {keys['carol']}"}) as carol:
        slow = {"prompt": "slow", "steps": 900}
        running = carol.post("/v1/videos", json=slow).json()["id"]
        until(lambda: carol.get(f"/v1/videos/{running}").json()["status"] == "in_progress")
        assert [carol.post("/v1/videos", json=slow).status_code for _ in range(2)] == [202, 202]
        answer = carol.post("/v1/videos", json=slow)
        problem(answer, 429)
        assert int(answer.headers["Retry-After"]) >= 1
        assert bob.post("/v1/videos", json=ORDER).status_code == 202
        cancel_all(carol)


def test_a_database_that_does_not_answer_is_a_503(
    alice: httpx.Client, made: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OperationalError("select", {}, Exception("the database is locked"))

    with monkeypatch.context() as context:
        context.setattr(made.store, "newest", broken)
        answer = alice.get("/v1/videos")
        assert "locked" not in problem(answer, 503)["detail"]
        assert answer.headers["Retry-After"] == "5"
