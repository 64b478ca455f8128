"""Deletion of results, jobs and files."""

import os

from tests.helpers.serving.fake_workers import Bench, Benches


def test_results_are_deleted_by_age(benches: Benches) -> None:
    bench = benches(keep_seconds=60)
    job = bench.submit()
    bench.worker.completes(bench.worker.begun()[0])
    bench.becomes(job, "completed")
    bench.service.retention.retain()
    assert bench.files("results") == [f"{job.id}.mp4"]
    bench.age(job, 61)
    bench.service.retention.retain()
    assert bench.files("results") == []
    assert (bench.status(job), bench.job(job).content) == ("completed", None)


def test_the_oldest_results_are_deleted_beyond_a_size(benches: Benches) -> None:
    bench = benches(keep_nbytes=250)
    jobs = [bench.submit() for _ in range(4)]
    for job in jobs:
        bench.worker.completes(bench.worker.begun(job)[0], bytes(100))
        bench.becomes(job, "completed")
    bench.service.retention.retain()
    assert [bench.job(job).content is not None for job in jobs] == [False, False, True, True]
    assert bench.files("results") == sorted(f"{job.id}.mp4" for job in jobs[2:])


def test_jobs_are_forgotten_with_their_results(benches: Benches) -> None:
    bench = benches(forget_seconds=60)
    old, cancelled, running = (bench.submit() for _ in range(3))
    bench.worker.completes(bench.worker.begun(old)[0])
    bench.service.cancel(cancelled.id)
    bench.becomes(old, "completed")
    bench.service.retention.forget()
    assert bench.service.store.get(old.id) is not None
    for job in (old, cancelled, running):
        bench.age(job, 61)
    bench.service.retention.forget()
    assert [bench.service.store.get(job.id) is None for job in (old, cancelled, running)] == [True, True, False]
    assert bench.files("results") == []


def test_files_that_belong_to_no_job_are_swept(bench: Bench) -> None:
    data = bench.settings.data
    kept, cancelled, running = bench.submit(), bench.submit(), bench.submit(image=True)
    bench.worker.completes(bench.worker.begun(kept)[0])
    bench.becomes(kept, "completed")
    bench.service.cancel(cancelled.id)
    bench.worker.lets_go(bench.worker.begun(cancelled)[0])
    unknown = f"video_{'0' * 32}"
    for name in (f"{unknown}-1", f"{kept.id}-1", f"{running.id}-0"):
        (data / "spool" / name).mkdir()
        (data / "spool" / name / "video.mp4").write_bytes(b"left")
    for name in (cancelled.id, unknown):
        (data / "images" / f"{name}.npy").write_bytes(b"left")
    (data / "images" / "video_old.npy").write_bytes(b"left")
    os.utime(data / "images" / "video_old.npy", (0, 0))
    for name in (f"{cancelled.id}.mp4", f".{cancelled.id}.mp4.part", f"{unknown}.mp4", "holiday.mp4"):
        (data / "results" / name).write_bytes(b"left")
    bench.service.retention.sweep()
    assert bench.files("spool") == [f"{running.id}-1"]
    # one that is not known may be of a job that is about to be stored
    assert bench.files("images") == sorted([f"{running.id}.npy", f"{unknown}.npy"])
    # and results that are not known may be another server's
    assert bench.files("results") == sorted([f"{kept.id}.mp4", f"{unknown}.mp4", "holiday.mp4"])
