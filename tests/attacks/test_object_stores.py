"""Object stores that fail"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from adacache_serve.http.app import create_app
from adacache_serve.jobs import publishing
from adacache_serve.jobs.results import ResultsError
from tests.helpers.serving.fake_workers import Bench, Benches
from tests.helpers.serving.gated_results import left_alone
from tests.helpers.serving.outages import outage
from tests.helpers.serving.s3_server import BUCKET, FAULTS, S3Server, s3_server
from tests.helpers.waiting import until

Tries = Callable[[Iterable[Any]], Iterator[Any]]
URL = f"s3://{BUCKET}/of/tests"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def bench(benches: Benches, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(publishing, "PAUSES", (0.01,) * 1000)
    s3.methods = ("GET", "HEAD", "PUT", "POST", "DELETE")
    yield benches(results=URL, in_flight=2, keep_nbytes=10**6)
    s3.fault = None


def over_http(bench: Bench) -> TestClient:
    """Return a client of a service that runs already."""
    return TestClient(create_app(bench.service, None, None), "http://127.0.0.1", raise_server_exceptions=False)


def content(bench: Bench, name: str) -> bytes:
    return httpx.get(bench.results.link(name) or "").content


def test_a_store_that_takes_no_videos_loses_and_doubles_none(bench: Bench, s3: S3Server, tries: Tries) -> None:
    client = over_http(bench)
    for number, fault in enumerate(tries(FAULTS)):
        s3.fault, s3.failed = fault, []
        job = bench.submit()
        video = str(number).encode() * 1000
        bench.worker.completes(bench.worker.begun(job)[0], video)
        until(lambda: len(s3.failed) > 2)  # it is tried again
        seen = client.get(f"/v1/videos/{job.id}").json()
        assert (seen["status"], seen["progress"], seen["content"]) == ("in_progress", 100.0, None)
        assert client.get("/readyz").status_code == 200
        s3.fault = None
        assert bench.becomes(job, "completed").attempts == 1
        assert content(bench, f"{job.id}.mp4") == video
        assert len(bench.worker.begun(job)) == 1
        left_alone(bench)


def test_a_store_that_deletes_nothing_gives_503_and_the_video_stays(bench: Bench, s3: S3Server, tries: Tries) -> None:
    client = over_http(bench)
    for fault in tries(("500", "503", "403", "cut")):
        jobs = [bench.submit(), bench.submit()]
        for job in jobs:
            bench.worker.completes(bench.worker.begun(job)[0])
            bench.becomes(job, "completed")
        s3.fault = fault
        answer = client.delete(f"/v1/videos/{jobs[0].id}")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.headers["content-type"] == "application/problem+json"
        assert client.get(f"/v1/videos/{jobs[0].id}").json()["content"] is not None
        for job in jobs:
            bench.age(job, 601)
        object.__setattr__(bench.service.retention, "settings", Kept())
        with pytest.raises(ResultsError):
            bench.service.retention.retain()
        assert [bench.job(job).content is not None for job in jobs] == [True, True]
        s3.fault = None
        assert client.delete(f"/v1/videos/{jobs[0].id}").status_code == 200
        bench.service.retention.retain()
        assert not any(bench.results.has(f"{job.id}.mp4") for job in jobs)
        assert [bench.job(job).content for job in jobs] == [None, None]


class Kept:
    """Settings by which videos are kept for ten minutes."""

    keep_seconds, keep_nbytes = 600.0, None


def test_a_store_that_does_not_say_what_it_has_makes_no_video_twice(bench: Bench, s3: S3Server) -> None:
    """The video was put, and the server did not learn whether."""
    job = bench.submit()
    with outage(bench.service.store.engine, only="UPDATE jobs SET status=") as away:
        bench.worker.completes(bench.worker.begun(job)[0])
        until(lambda: away.refused)
        s3.fault, s3.failed, s3.methods = "500", [], ("HEAD", "GET")
    until(lambda: len(s3.failed) > 2)
    assert bench.status(job) == "in_progress"
    with pytest.raises(ResultsError):
        bench.service.retention.sweep()
    s3.fault = None
    assert bench.becomes(job, "completed").attempts == 1
    assert len(bench.worker.begun()) == 1


def test_a_store_that_does_not_answer_keeps_only_its_own_uploads_waiting(bench: Bench, s3: S3Server) -> None:
    s3.fault, s3.failed = "held", []
    jobs = [bench.submit() for _ in range(4)]
    client = over_http(bench)
    for job in jobs:
        bench.worker.completes(until(lambda job=job: bench.worker.begun(job))[0])
    until(lambda: "PUT" in s3.failed)
    assert client.get("/readyz").status_code == 200
    made = client.post("/v1/videos", json={"prompt": "boat"})
    assert made.status_code == 202
    assert client.delete(f"/v1/videos/{jobs[-1].id}").json()["status"] == "cancelled"
    assert bench.worker.begun()[-1].job == made.json()["id"]
    s3.fault = None
    s3.release.set()
    for job in jobs[:-1]:
        bench.becomes(job, "completed")
