"""Databases that fail while jobs run"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adacache_serve.device.messages import PhaseEnded, Ready
from adacache_serve.jobs import endings
from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import served, service
from tests.helpers.serving.fake_workers import Benches
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
    """What a worker said while the database was away is recorded when it answers."""
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
    """The same process finishes its video, and the next one."""
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
        assert ended(client, create(client))["status"] == "completed"
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
