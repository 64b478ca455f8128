"""Jobs that are cancelled, expire, or lose their worker or server, on workers that do what the test says."""

import errno
import threading
from pathlib import Path

import pytest

from adacache_engines.errors import InputError
from adacache_serve.jobs.service import BusyError, StoppingError
from adacache_serve.keys import Client
from tests.helpers.serving.fake_workers import Bench, Benches, FakeWorker
from tests.helpers.serving.gated_results import gated, left_alone
from tests.helpers.waiting import HANG_SECONDS, until


def test_a_worker_has_so_many_jobs_at_once(benches: Benches) -> None:
    bench = benches(in_flight=2, devices=("0", "1"))
    jobs = [bench.submit() for _ in range(6)]
    assert [len(worker.begun()) for worker in bench.workers] == [2, 2]
    assert [bench.status(job) for job in jobs] == ["in_progress"] * 4 + ["queued"] * 2
    bench.worker.completes(bench.worker.begun()[0])
    assert len(bench.worker.begun()) == 3
    assert bench.becomes(jobs[0], "completed").trace["calls"] == 1


def test_the_highest_priority_is_begun_first(benches: Benches) -> None:
    bench = benches(in_flight=1)
    first, low, high, higher = (bench.submit(priority=priority) for priority in (0, -1, 1, 2))
    for _ in range(4):
        bench.worker.completes(bench.worker.begun()[-1])
    assert [begin.job for begin in bench.worker.begun()] == [job.id for job in (first, higher, high, low)]


def test_a_waiting_job_is_cancelled(benches: Benches) -> None:
    bench = benches(in_flight=1)
    running, waiting = bench.submit(), bench.submit(image=True)
    assert bench.files("images") == [f"{waiting.id}.npy"]
    assert bench.service.cancel(waiting.id)
    assert not bench.service.cancel(waiting.id)
    assert bench.files("images") == []
    bench.worker.completes(bench.worker.begun()[0])
    bench.becomes(running, "completed")
    assert len(bench.worker.begun()) == 1
    left_alone(bench)


def test_the_place_of_a_cancelled_job_is_free_when_its_worker_let_go(benches: Benches) -> None:
    bench = benches(in_flight=1)
    first, second = bench.submit(image=True), bench.submit()
    (begin,) = bench.worker.begun()
    assert bench.service.cancel(first.id)
    assert bench.worker.cancelled() == [first.id]
    assert bench.files("images") == [f"{first.id}.npy"]  # which the worker may be reading
    assert len(bench.worker.begun()) == 1
    bench.worker.lets_go(begin)
    assert bench.files("images") == []
    assert bench.worker.begun()[-1].job == second.id
    assert bench.status(first) == "cancelled"


def test_a_video_that_comes_after_the_cancel_is_dropped(bench: Bench) -> None:
    job = bench.submit()
    (begin,) = bench.worker.begun()
    bench.service.cancel(job.id)
    bench.worker.completes(begin)
    assert bench.status(job) == "cancelled"
    assert bench.files("results") == []
    left_alone(bench)


def test_deadlines_end_waiting_and_running_jobs(benches: Benches) -> None:
    bench = benches(in_flight=1)
    running, waiting, patient = (bench.submit(deadline_seconds=seconds) for seconds in (600, 600, 3600))
    bench.age(running, 600)
    bench.age(waiting, 600)
    assert bench.becomes(running, "failed").error["code"] == "deadline"
    assert bench.becomes(waiting, "failed").error["code"] == "deadline"
    until(lambda: bench.worker.cancelled() == [running.id])
    bench.worker.lets_go(bench.worker.begun()[0])
    assert [begin.job for begin in bench.worker.begun()] == [running.id, patient.id]


def test_what_a_worker_made_before_it_died_is_not_made_again(bench: Bench) -> None:
    made, unmade = bench.submit(), bench.submit()
    bench.worker.writes(bench.worker.begun(made)[0], b"before it died")
    bench.worker.turn(bench.worker.begun(unmade)[0])
    bench.worker.dies()
    assert bench.becomes(made, "completed").attempts == 1
    assert bench.results.path(f"{made.id}.mp4").read_bytes() == b"before it died"
    assert bench.service.store.calls(made.id)[0]["distance"] == 0.5
    assert [begin.attempt for begin in bench.worker.begun(unmade)] == [1, 2]
    assert len(bench.worker.begun(made)) == 1


def test_a_video_without_a_record_is_not_taken_for_made(bench: Bench) -> None:
    job = bench.submit()
    (begin,) = bench.worker.begun()
    bench.worker.turn(begin)
    Path(f"{begin.output}.mp4").write_bytes(b"the disk did not get all of it")
    bench.worker.dies()
    assert [begin.attempt for begin in bench.worker.begun(job)] == [1, 2]
    assert bench.files("results") == []


def test_a_death_is_held_against_the_job_whose_step_it_was(benches: Benches) -> None:
    bench = benches(in_flight=3, attempts=2)
    harmless, deadly, other = (bench.submit() for _ in range(3))
    for _ in range(2):
        for job in (harmless, other, deadly):
            bench.worker.calls(bench.worker.begun(job)[-1])
        bench.worker.dies()
    failed = bench.becomes(deadly, "failed")
    assert failed.error["code"] == "worker_died"
    assert "2 times" in failed.error["message"]
    for job in (harmless, other):
        assert (bench.status(job), bench.job(job).deaths, len(bench.worker.begun(job))) == ("in_progress", 0, 3)


def test_a_death_costs_the_jobs_nothing_that_the_worker_had_not_begun(benches: Benches) -> None:
    """Not even where the job of the last step had just ended."""
    bench = benches(in_flight=3, attempts=2)
    done, begun, waiting = (bench.submit() for _ in range(3))
    bench.worker.turn(bench.worker.begun(begun)[0])
    bench.worker.completes(bench.worker.begun(done)[0])
    for _ in range(3):
        bench.worker.dies()
    assert bench.becomes(done, "completed").attempts == 1
    assert [bench.job(job).deaths for job in (begun, waiting)] == [0, 0]
    assert [begin.attempt for begin in bench.worker.begun(begun)] == [1, 2, 2, 2]
    assert [begin.attempt for begin in bench.worker.begun(waiting)] == [1] * 4


def test_a_disk_without_room_for_a_folder_costs_no_attempts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def full(*begun: object) -> Path:
        tries.append(begun)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bench.service.spool, "begin", full)
        job = bench.submit()
        until(lambda: len(tries) > 3)
    until(bench.worker.begun)
    assert bench.worker.begun(job)[0].attempt == 1


def test_jobs_of_a_dead_worker_go_on_with_another(benches: Benches) -> None:
    bench = benches(devices=("0", "1"), in_flight=1)
    first, second = bench.workers
    job, other = bench.submit(), bench.submit()
    first.turn(first.begun(job)[0])
    first.dies(again=False)
    second.completes(second.begun(other)[0])
    (begin,) = second.begun(job)
    assert begin.attempt == 2
    # what the dead one said last is of an attempt that is over
    first.fails(first.begun(job)[0])
    first.completes(first.begun(job)[0].model_copy(update={"output": begin.output}), b"of the dead")
    assert bench.status(job) == "in_progress"
    second.completes(begin, b"of the living")
    assert bench.becomes(job, "completed").attempts == 2
    assert bench.results.path(f"{job.id}.mp4").read_bytes() == b"of the living"


def test_a_cancelled_job_whose_worker_dies_is_over(bench: Bench) -> None:
    job = bench.submit()
    bench.service.cancel(job.id)
    bench.worker.dies()
    assert bench.status(job) == "cancelled"
    assert len(bench.worker.begun()) == 1
    left_alone(bench)


def test_errors_are_told(bench: Bench) -> None:
    job = bench.submit()
    bench.worker.fails(bench.worker.begun()[0])
    assert bench.job(job).error == {"code": "EngineError", "message": "it broke"}
    left_alone(bench)


def test_a_killed_server_leaves_everything_to_the_next(benches: Benches) -> None:
    bench = benches(in_flight=2)
    gate = gated(bench)
    made_not_put, made_not_heard = bench.submit(), bench.submit()
    begins = bench.worker.begun()
    bench.worker.completes(begins[0], b"first")
    until(lambda: gate.tries)
    bench.worker.writes(begins[1], b"second")
    running, waiting = bench.submit(), bench.submit()
    assert [bench.status(job) for job in (made_not_put, made_not_heard, running, waiting)] == [
        *(["in_progress"] * 3),
        "queued",
    ]
    gate.failures = 1
    bench.service.publisher._stopping.set()
    gate.open.set()
    bench.crash()
    bench.start()
    assert bench.becomes(made_not_put, "completed").attempts == 1
    assert bench.becomes(made_not_heard, "completed").attempts == 1
    assert bench.results.path(f"{made_not_put.id}.mp4").read_bytes() == b"first"
    assert bench.results.path(f"{made_not_heard.id}.mp4").read_bytes() == b"second"
    assert [(begin.job, begin.attempt) for begin in bench.worker.begun()] == [(running.id, 2), (waiting.id, 1)]


def test_a_job_that_is_nobodys_is_found(bench: Bench) -> None:
    job = bench.submit()
    # as after an error of the database in the middle of a worker's death
    bench.service.dispatcher._assigned.clear()
    until(lambda: len(bench.worker.begun(job)) == 2)
    assert bench.job(job).attempts == 2


def test_a_worker_that_hangs_is_killed(benches: Benches) -> None:
    bench = benches(hang_seconds=100)
    bench.worker.heard -= 1000
    bench.service.dispatcher.end_hung()
    assert not bench.worker.killed  # with nothing to do, it may be silent
    job = bench.submit()
    bench.service.dispatcher.end_hung()
    assert not bench.worker.killed  # it has just been given something to do
    bench.service.dispatcher._assigned[job.id].progress.began -= 1000
    until(lambda: bench.worker.killed)


def test_a_model_that_is_not_served_any_more_is_told(benches: Benches) -> None:
    bench = benches(in_flight=1)
    running, waiting = bench.submit(), bench.submit()
    bench.crash()
    bench.start()
    bench.service.dispatcher._models = ()
    bench.worker.completes(bench.worker.begun(running)[0])
    assert bench.becomes(waiting, "failed").error["code"] == "model"
    left_alone(bench)


def test_the_queue_has_a_bound_for_all_and_for_each(benches: Benches) -> None:
    bench = benches(in_flight=1, queue=3, queue_per_client=2)
    one, other, small = Client("one"), Client("other"), Client("small", queue=1)
    bench.submit(one)
    bench.submit(small)
    with pytest.raises(BusyError, match="1 of your jobs are waiting"):
        bench.submit(small)
    bench.submit(other)
    bench.submit(other)
    with pytest.raises(BusyError, match="2 of your jobs are waiting"):
        bench.submit(other, image=True)
    with pytest.raises(BusyError, match="3 jobs are waiting already") as busy:
        bench.submit(one, image=True)
    assert busy.value.retry_after == 5  # nothing is known yet
    assert bench.files("images") == []
    bench.service.dispatcher._took.append(7.0)
    with pytest.raises(BusyError, match="3 jobs are waiting already") as busy:
        bench.submit(one)
    assert busy.value.retry_after == 7  # one place
    with pytest.raises(BusyError, match="2 of your jobs are waiting") as busy:
        bench.submit(other)
    assert busy.value.retry_after == 14  # behind that of the small one
    bench.worker.completes(bench.worker.begun()[0])
    bench.submit(one)


def test_a_stopping_server_takes_no_jobs_and_knows_those_it_has(benches: Benches) -> None:
    bench = benches(drain_seconds=0.2, in_flight=1)
    running, waiting = bench.submit(key="a key"), bench.submit()
    bench.service.drain()
    with pytest.raises(StoppingError):
        bench.submit()
    assert bench.submit(key="a key").id == running.id
    assert not bench.service.ready
    bench.service.stop()
    bench.start()
    assert [(begin.job, begin.attempt) for begin in bench.worker.begun()] == [(running.id, 2)]
    assert bench.status(waiting) == "queued"
    assert bench.job(running).deaths == 0


def test_a_drain_ends_with_the_last_job_that_runs(benches: Benches) -> None:
    bench = benches(drain_seconds=10 * HANG_SECONDS, in_flight=1)
    running, waiting = bench.submit(), bench.submit()
    drain = threading.Thread(target=bench.service.drain)
    drain.start()
    until(lambda: bench.service.draining)
    bench.worker.completes(bench.worker.begun()[0])
    drain.join(HANG_SECONDS)
    assert not drain.is_alive()
    assert (bench.status(running), bench.status(waiting)) == ("completed", "queued")


def test_two_servers_cannot_have_the_same_data(bench: Bench) -> None:
    service = bench.service
    with pytest.raises(InputError, match="another adacache-serve uses"):
        bench.start()
    bench.service, bench.worker = service, FakeWorker.made[0] if FakeWorker.made else bench.worker
    assert bench.service.ready


def test_where_experts_take_turns_a_worker_has_one_job_at_a_time(benches: Benches) -> None:
    """However many may be in flight: each change of turns would load an expert."""
    bench = benches(in_flight=4, expert_offload=True, devices=("0", "1"))
    jobs = [bench.submit() for _ in range(3)]
    assert [len(worker.begun()) for worker in bench.workers] == [1, 1]
    assert [bench.status(job) for job in jobs] == ["in_progress"] * 2 + ["queued"]
    bench.worker.completes(bench.worker.begun()[0])
    assert len(bench.worker.begun()) == 2
