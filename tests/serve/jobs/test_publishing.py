"""Finished videos on their way to the results, which may be slow, fail or vanish."""

from pathlib import Path

import pytest

from adacache_serve.jobs.store import Job
from tests.helpers.serving.fake_workers import Bench
from tests.helpers.serving.gated_results import gated, left_alone
from tests.helpers.waiting import until


class Deaf:
    """A database that is gone."""

    def get(self, name: str) -> Job:
        return Job(**{**dict.fromkeys(Job.__dataclass_fields__), "id": name, "status": "in_progress"})

    def complete(self, *_: object) -> bool:
        raise OSError("gone")


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_a_job_that_ends_while_its_video_is_put_away_leaves_nothing(bench: Bench, how: str) -> None:
    gate = gated(bench)
    job = bench.submit(deadline_seconds=3600)
    bench.worker.completes(bench.worker.begun()[0])
    until(lambda: gate.tries)
    if how == "cancelled":
        assert bench.service.cancel(job.id)
    else:
        bench.age(job, 3600)
        assert bench.becomes(job, "failed").error["code"] == "deadline"
    gate.open.set()
    until(lambda: not bench.files("spool"))
    assert bench.files("results") == []
    assert bench.job(job).content is None
    left_alone(bench)


def test_a_video_that_was_put_before_the_server_was_killed_is_completed(bench: Bench) -> None:
    job = bench.submit()
    bench.service.publisher._store = Deaf()  # the server is killed before it can say so
    bench.worker.completes(bench.worker.begun()[0])
    until(lambda: bench.files("results") == [f"{job.id}.mp4"])
    bench.crash()
    bench.start()
    assert bench.becomes(job, "completed").content == f"{job.id}.mp4"
    assert bench.worker.begun() == []
    left_alone(bench)


def test_a_video_that_vanished_is_made_again(bench: Bench) -> None:
    gate = gated(bench)
    gate.failures = 1
    job = bench.submit()
    (begin,) = bench.worker.begun()
    bench.worker.completes(begin)
    until(lambda: gate.tries)
    Path(f"{begin.output}.mp4").unlink()
    gate.open.set()
    until(lambda: len(bench.worker.begun()) == 2)
    assert bench.job(job).attempts == 2
    bench.worker.completes(bench.worker.begun()[1])
    bench.becomes(job, "completed")


def test_what_cannot_be_put_is_tried_again(bench: Bench) -> None:
    gate = gated(bench, failures=3)
    gate.open.set()
    job = bench.submit()
    bench.worker.completes(bench.worker.begun()[0])
    bench.becomes(job, "completed")
    assert gate.tries == 4
    left_alone(bench)


def test_what_can_never_be_put_fails_its_job(bench: Bench) -> None:
    gate = gated(bench, failures=99)
    gate.open.set()
    job = bench.submit()
    bench.worker.completes(bench.worker.begun()[0])
    assert bench.becomes(job, "failed").error["code"] == "storage"
    assert gate.tries == 4
    left_alone(bench)
