"""Clocks that are set while jobs run"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from adacache_serve.jobs.clock import JumpWatch, now
from adacache_serve.jobs.service import BusyError
from tests.helpers.serving.fake_workers import Benches
from tests.helpers.serving.gated_results import left_alone

Tries = Callable[[Iterable[Any]], Iterator[Any]]
DAY = 86400.0
JUMPS = (365 * DAY, -365 * DAY, 3600.0, -3600.0, -now())  # the last is to 1970


def test_a_clock_that_is_set_ends_no_job_and_deletes_nothing(
    benches: Benches, tries: Tries, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = benches(in_flight=1, keep_seconds=600, forget_seconds=1200, hang_seconds=600, queue=1)
    true_time = time.time
    for jump in tries(JUMPS):
        done, running = bench.submit(deadline_seconds=600), bench.submit(image=True, deadline_seconds=600)
        bench.worker.completes(bench.worker.begun(done)[0])
        bench.becomes(done, "completed")
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda jump=jump: true_time() + jump)
            service = bench.service
            waiting = bench.submit(deadline_seconds=600)
            service.expire()
            service.dispatcher.end_hung()
            service.retention.retain()
            service.retention.forget()
            service.retention.sweep()
            with pytest.raises(BusyError) as busy:
                bench.submit()
            assert 1 <= busy.value.retry_after <= 3600
            assert [bench.status(job) for job in (done, running, waiting)] == ["completed", "in_progress", "queued"]
            assert bench.files("images") == [f"{running.id}.npy"]
            assert f"{done.id}.mp4" in bench.files("results")
            for job in (running, waiting):
                bench.worker.completes(bench.worker.begun(job)[0])
                ended = bench.becomes(job, "completed")
                assert ended.created <= ended.started <= ended.ended <= now()
        assert not bench.worker.killed
        left_alone(bench)
        for job in (done, running, waiting):  # what has really grown old goes
            bench.age(job, 601)
        bench.service.retention.retain()
        assert bench.files("results") == []


def test_a_restart_compares_stored_times_with_the_new_clock(benches: Benches) -> None:
    """A server compares stored deadlines with the machine's clock when it starts, as its README says."""
    bench = benches(in_flight=1)
    running, late, patient = (bench.submit(deadline_seconds=seconds) for seconds in (9000, 600, 9000))
    bench.crash()
    bench.start()
    for job in (running, late, patient):
        bench.age(job, 3600)
    assert bench.becomes(late, "failed").error["code"] == "deadline"
    assert [bench.status(job) for job in (running, patient)] == ["in_progress", "queued"]


def test_a_clock_that_is_set_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    watch, true_time = JumpWatch(), time.time
    with caplog.at_level(logging.WARNING):
        watch.look()
        assert caplog.messages == []
        monkeypatch.setattr(time, "time", lambda: true_time() - 7200)
        watch.look()
        watch.look()
    (said,) = caplog.messages
    assert "-7200 seconds ahead of this server's" in said
