"""Databases that fail while jobs run"""

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import SQLAlchemyError
from starlette.testclient import TestClient

from adacache_serve.device.messages import PhaseEnded, Ready
from adacache_serve.http.app import create_app
from adacache_serve.jobs import endings
from adacache_serve.jobs.store import Job, Store
from adacache_serve.settings import Settings
from tests.helpers.serving import postgresql
from tests.helpers.serving.fake_server import served, service
from tests.helpers.serving.fake_workers import Bench, Benches
from tests.helpers.serving.gated_results import left_alone
from tests.helpers.serving.http_jobs import create, ended
from tests.helpers.serving.outages import outage
from tests.helpers.waiting import until

Tries = Callable[[Iterable[Any]], Iterator[Any]]
ERRORS = (
    sqlite3.OperationalError("database is locked"),
    sqlite3.OperationalError("database or disk is full"),
    sqlite3.OperationalError("disk I/O error"),
    sqlite3.OperationalError("attempt to write a readonly database"),
    sqlite3.OperationalError("unable to open database file"),
    sqlite3.OperationalError("no such table: jobs"),
    sqlite3.InterfaceError("bad parameter or other API misuse"),
    sqlite3.DatabaseError("database disk image is malformed"),
    sqlite3.DatabaseError("file is not a database"),
)
ENDS = ("completes", "fails", "dies", "lets_go")


def test_no_error_of_the_database_costs_a_worker_or_an_attempt(
    benches: Benches, tries: Tries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server records the end of a job that came while the database was away, as soon as that answers."""
    monkeypatch.setattr(endings, "MOST_TRIES", 10**9)
    bench = benches(in_flight=3, attempts=2)
    for error, end in tries([(error, end) for error in ERRORS for end in ENDS]):
        job, beside = bench.submit(), bench.submit()
        (begin,) = bench.worker.begun(job)
        if end == "lets_go":
            bench.service.cancel(job.id)
        with outage(bench.service.store.engine, lambda error=error: type(error)(*error.args)) as away:
            bench.worker.turn(begin)
            bench.worker.says(phase(begin.job))
            if end == "dies":
                bench.worker.dies()
                bench.worker.says(Ready(pid=1))
            else:
                getattr(bench.worker, end)(begin)
            seen = len(away.refused)
            until(lambda away=away, seen=seen: len(away.refused) > seen + 3)  # it is tried again
        if end == "dies":
            again = until(lambda job=job: bench.worker.begun(job)[1:])[0]
            assert (again.attempt, bench.job(job).deaths) == (2, 1)
            bench.worker.completes(again)
            until(lambda beside=beside: bench.worker.begun(beside)[1:])
        expected = {"completes": "completed", "fails": "failed", "dies": "completed", "lets_go": "cancelled"}[end]
        bench.becomes(job, expected)
        bench.worker.completes(bench.worker.begun(beside)[-1])
        assert bench.becomes(beside, "completed").attempts == 1
        left_alone(bench)
    assert not bench.worker.killed


def phase(job: str, attempt: int = 1) -> PhaseEnded:
    return PhaseEnded(job=job, attempt=attempt, model="fake", phase="encode", began=0.0, ended=1.0, device_seconds=1.0)


def test_a_real_worker_outlives_an_outage_of_the_database(tmp_path: Path, model: Path) -> None:
    """A worker process finishes the video that it makes while the database is away, and then makes another one."""
    made = service(Settings(tmp_path / "data"), model)
    with served(made) as client:
        pid = made.workers[0].pid
        with outage(made.store.engine, only="UPDATE jobs SET trace=") as away:  # what says that a video is made
            name = create(client)
            until(lambda: len(away.refused) > 1)
            assert made.progress(name) is not None
            assert client.get(f"/v1/videos/{name}").json()["status"] == "in_progress"
            with outage(made.store.engine):
                for refused in client.get(f"/v1/videos/{name}"), client.post("/v1/videos", json={"prompt": "boat"}):
                    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
                    assert refused.headers["content-type"] == "application/problem+json"
        job = ended(client, name)
        assert (job["status"], job["attempts"]) == ("completed", 1)
        name = create(client, prompt="slow", steps=20)
        with client.stream("GET", f"/v1/videos/{name}/events") as stream:
            lines = stream.iter_lines()
            next(line for line in lines if line == "event: call")
            with outage(made.store.engine) as away:
                until(lambda: made.progress(name) and made.progress(name).of == len(made.progress(name).calls))
                until(lambda: len(away.refused) > 3)
            assert '"status":"completed"' in [line for line in lines if line.startswith("data: ")][-1]
        assert (made.workers[0].pid, made.workers[0].restarts) == (pid, 0)
        assert made.store.count("queued", "in_progress") == 0


@pytest.mark.parametrize("end", ["completes", "fails"])
def test_an_end_that_can_never_be_recorded_fails_its_job_alone(
    benches: Benches, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "MOST_TRIES", 3)
    bench = benches(in_flight=2)
    job, beside = bench.submit(), bench.submit()

    def never(*_values: object, **_more: object) -> bool:
        raise ValueError("the value has no place in the table")

    with monkeypatch.context() as patch:
        patch.setattr(
            bench.service.spool if end == "fails" else bench.service.store, "drop" if end == "fails" else "made", never
        )
        getattr(bench.worker, end)(bench.worker.begun(job)[0])
        error = until(lambda: bench.status(job) == "failed" and bench.job(job).error)
    assert error["code"] == "internal"
    bench.worker.completes(bench.worker.begun(beside)[0])
    bench.becomes(beside, "completed")
    until(lambda: not len(bench.service.dispatcher))


def over_http(bench: Bench) -> TestClient:
    """Return a client of a service that runs already."""
    return TestClient(create_app(bench.service, None, None), "http://127.0.0.1", raise_server_exceptions=False)


def deleted(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.unlink()
    path.touch()


def swapped(path: Path) -> None:
    shutil.copyfile(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(random.Random(1).randbytes(path.stat().st_size))


def cut(path: Path) -> None:
    os.truncate(path, 100)


def zeroed(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


def test_a_damaged_database_file_gives_503_and_a_restored_one_serves_again(
    benches: Benches, tries: Tries, caplog: pytest.LogCaptureFixture
) -> None:
    bench = benches(in_flight=1)
    path = bench.settings.data / "jobs.sqlite"
    for damage in tries([deleted, emptied, swapped, overwritten, cut, zeroed]):
        running, waiting = bench.submit(), bench.submit()
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(path.with_suffix(".saved"))) as saved:
            source.backup(saved)
            source.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else what is read is in the log, and not in the file
        bench.service.dispatcher.paused = True  # else the next claim may be later than the backup
        damage(path)
        client = over_http(bench)
        bench.worker.completes(bench.worker.begun(running)[0])
        answer = until(lambda client=client: (got := client.get("/readyz")).status_code == 503 and got)
        assert "cannot use its database" in answer.json()["detail"]
        assert "Retry-After" in answer.headers
        asked = {
            "a job": client.get(f"/v1/videos/{running.id}"),
            "all jobs": client.get("/v1/videos"),
            "a new job": client.post("/v1/videos", json={"prompt": "boat"}),
            "an end": client.delete(f"/v1/videos/{waiting.id}"),
        }
        for answer in asked.values():
            assert answer.status_code == 503 or (answer.is_success and damage not in (deleted, emptied, swapped))
            if answer.status_code == 503:
                assert answer.headers["content-type"] == "application/problem+json"
        assert client.get("/metrics").status_code == 200
        assert client.get("/healthz").status_code == 200
        assert any("database does not answer" in message for message in caplog.messages)
        caplog.clear()
        bench.crash()
        for leftover in bench.settings.data.glob("jobs.sqlite-*"):
            leftover.unlink()
        path.with_suffix(".saved").replace(path)
        bench.start()
        assert over_http(bench).get("/readyz").status_code == 200
        assert bench.becomes(running, "completed").attempts == 1  # it had been made while the database was away
        bench.worker.completes(bench.worker.begun(waiting)[0])
        assert bench.becomes(waiting, "completed").attempts == 1
        left_alone(bench)


def test_postgresql_that_stops_and_comes_back_costs_no_job(benches: Benches) -> None:
    if why := postgresql.missing():
        pytest.skip(why)
    with postgresql.postgresql_server() as server:
        until(lambda: answers(server.url))
        bench = benches(database=server.url, in_flight=2)
        made, failed, waiting = (bench.submit() for _ in range(3))
        client = over_http(bench)
        assert client.get("/readyz").status_code == 200
        server.stop()
        bench.worker.completes(bench.worker.begun(made)[0])
        bench.worker.fails(bench.worker.begun(failed)[0])
        for path in ("/readyz", f"/v1/videos/{made.id}", "/v1/videos"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert client.post("/v1/videos", json={"prompt": "boat"}).status_code == 503
        server.start()
        assert bench_answers(bench, made, "completed").attempts == 1
        assert bench_answers(bench, failed, "failed").error["code"] == "EngineError"
        until(lambda: bench.worker.begun(waiting))
        bench.worker.completes(bench.worker.begun(waiting)[0])
        assert bench.becomes(waiting, "completed").attempts == 1
        until(lambda: client.get("/readyz").status_code == 200)
        assert not bench.service.lost
        left_alone(bench)
        bench.service.stop()


def answers(url: str) -> bool:
    try:
        Store(url).close()
    except SQLAlchemyError:
        return False
    return True


def bench_answers(bench: Bench, job: Job, status: str) -> Job:
    """Wait for the status of a job in a database that may still be away."""

    def look() -> Job | None:
        with suppress(SQLAlchemyError):
            found = bench.job(job)
            return found if found.status == status else None
        return None

    found = until(look)
    assert found is not None
    return found
