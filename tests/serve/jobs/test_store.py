"""The table of jobs on SQLite and PostgreSQL: concurrent changes, and what is remembered."""

import fcntl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from adacache_engines.errors import InputError
from adacache_serve.disk import locks
from adacache_serve.jobs import ownership
from adacache_serve.jobs.ownership import Ownership
from adacache_serve.jobs.store import Job, Store
from adacache_serve.jobs.table import jobs, metadata
from adacache_serve.orders.schema import CreateVideo
from tests.helpers.serving import postgresql
from tests.helpers.serving.fake_server import write_model
from tests.helpers.serving.fake_workers import Bench
from tests.helpers.waiting import HANG_SECONDS, until


@pytest.fixture(scope="module")
def postgresql_url() -> Iterator[str]:
    if why := postgresql.missing():
        pytest.skip(why)
    with postgresql.postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    url: str = request.getfixturevalue("postgresql_url")
    until(lambda: answers(url))
    return url


def answers(url: str) -> bool:
    try:
        Store(url).close()
    except OperationalError:
        return False
    return True


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url)
    metadata.drop_all(made.engine)
    metadata.create_all(made.engine)
    yield made
    made.close()


def add(store: Store, name: str, client: str = "somebody", key: str | None = None, **order: object) -> Job:
    asked = CreateVideo(prompt="boat", seed=1, **order)
    return store.add(name, client, asked, "fake", "0" * 64, key, None, asked.priority)[0]


def at_once(number: int, work: Callable[[int], object]) -> list[object]:
    """Run ``work`` in several threads that start together; return the results."""
    barrier = threading.Barrier(number)

    def begin(index: int) -> object:
        barrier.wait()
        return work(index)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(begin, range(number)))


def completed(store: Store, name: str, nbytes: int = 10) -> None:
    job = store.get(name)
    while job is None or job.status == "queued":
        job = store.claim()
    assert store.made(name, 1, "video.mp4", nbytes, {}, [])
    assert store.complete(name, 1, f"{name}.mp4")


def test_a_job_comes_back_as_it_was(store: Store, url: str) -> None:
    prompt = "a bóat 船 \\u0000 'quoted'; DROP TABLE jobs"
    order = CreateVideo(prompt=prompt, seed=2**53, deadline_seconds=60, image="cGljdHVyZQ==")
    before = time.time()
    job, new = store.add("video_1", "somebody", order, "fake", "f" * 64, "key", "video_1.npy", 3)
    assert new
    store.close()
    again = Store(url)
    read = again.get("video_1")
    again.close()
    assert read == job
    assert read.order.prompt == prompt
    assert read.order.image is None
    assert before + 60 <= read.deadline <= time.time() + 60
    assert (read.status, read.attempts, read.deaths) == ("queued", 0, 0)


def test_the_highest_priority_is_next_and_then_the_first_that_came(store: Store) -> None:
    for number, priority in enumerate((0, 5, 0, 5, -5)):
        add(store, f"video_{number}", priority=priority)
    claimed = [store.claim() for _ in range(5)]
    assert [job.id[-1] for job in claimed if job] == ["1", "3", "0", "2", "4"]
    assert store.claim() is None


def test_a_client_waits_for_those_ahead_of_its_first_job(store: Store) -> None:
    for number, (client, priority) in enumerate([("a", 0), ("b", 0), ("a", 1), ("c", -1), ("c", 0)]):
        add(store, f"video_{number}", client, priority=priority)
    assert [store.ahead(client) for client in ("a", "b", "c", "nobody")] == [0, 3, 3, 0]


def test_clients_take_turns_within_a_priority(store: Store) -> None:
    for number in range(5):
        add(store, f"video_a{number}", "a")
    add(store, "video_b0", "b")
    add(store, "video_c0", "c", priority=1)
    add(store, "video_b1", "b")
    claimed = []
    while job := store.claim():
        claimed.append(job.id.removeprefix("video_"))
        if job.id == "video_b0":
            assert store.cancel(job.id)  # else b has a place, and its next job comes when a has as many
    assert claimed == ["c0", "a0", "b0", "b1", "a1", "a2", "a3", "a4"]


def test_a_damaged_row_stops_no_other_job(store: Store) -> None:
    for number in range(3):
        add(store, f"video_{number}")
    with store.engine.begin() as connection:
        connection.execute(jobs.update().where(jobs.c.id == "video_0").values(order="{no JSON"))
    claimed = store.claim()
    assert claimed is not None
    assert claimed.id == "video_1"
    assert [job.id for job in store.newest(None, 9)] == ["video_2", "video_1"]
    assert store.get("video_0") is None


def test_many_who_claim_never_get_the_same_job(store: Store) -> None:
    for number in range(30):
        add(store, f"video_{number}")

    def claim_all(_: int) -> list[str]:
        found = []
        while job := store.claim():
            assert (job.status, job.attempts) == ("in_progress", 1)
            found.append(job.id)
        return found

    names = Counter(name for found in at_once(4, claim_all) for name in found)
    assert len(names) == 30
    assert set(names.values()) == {1}


def test_the_same_key_at_the_same_time_is_one_job(store: Store) -> None:
    jobs = at_once(4, lambda index: add(store, f"video_{index}", key="the same"))
    assert len({job.id for job in jobs}) == 1
    assert add(store, "video_other", client="another", key="the same").id == "video_other"
    assert store.count("queued") == 2


def test_of_those_who_end_a_job_at_the_same_time_one_wins(store: Store) -> None:
    for number in range(10):
        name = f"video_{number}"
        add(store, name)
        store.claim()
        store.made(name, 1, "video.mp4", 1, {}, [])
        ends = (
            lambda name=name: store.cancel(name),
            lambda name=name: store.complete(name, 1, "content"),
            lambda name=name: store.fail(name, "deadline", "late"),
            lambda name=name: store.requeue(name, 1),
        )
        won = at_once(4, lambda index, ends=ends: ends[index]())
        job = store.get(name)
        ways = ("cancelled", "completed", "failed", "queued")
        # what was queued again can still be cancelled or fail
        assert ways[won.index(True)] == job.status or (won[3] and job.status in ("cancelled", "failed"))
        assert sum(won[:3]) <= 1
        assert (job.content is not None) == (job.status == "completed")


def test_an_earlier_attempt_changes_nothing(store: Store) -> None:
    add(store, "video_1")
    store.claim()
    assert store.requeue("video_1", 1, died=True)
    second = store.claim()
    assert (second.attempts, second.deaths) == (2, 1)
    assert not store.made("video_1", 1, "video.mp4", 1, {}, [])
    assert not store.fail("video_1", "internal", "of the first attempt", 1)
    assert not store.requeue("video_1", 1)
    assert not store.complete("video_1", 1, "content")
    assert store.get("video_1") == second


def test_a_job_that_is_made_again_has_nothing_of_before(store: Store) -> None:
    add(store, "video_1")
    store.claim()
    store.made("video_1", 1, "video.mp4", 1, {"calls": 1}, [{"call": 1}])
    store.requeue("video_1", 1)
    job = store.get("video_1")
    assert (job.made, job.nbytes, job.trace, job.started, job.deaths) == (None, None, None, None, 0)
    assert store.calls("video_1") == []


def test_what_ended_stays_ended(store: Store) -> None:
    for name, end in (
        ("video_1", lambda name: store.cancel(name)),
        ("video_2", lambda name: store.fail(name, "x", "y")),
    ):
        add(store, name)
        assert end(name)
        ended = store.get(name)
        assert ended.ended is not None
        assert not (store.cancel(name) or store.fail(name, "x", "y") or store.requeue(name, 0))
        assert store.get(name) == ended
    assert store.claim() is None
    assert not store.cancel("video_unknown")


def test_deadlines_are_over_for_waiting_and_running_jobs(store: Store) -> None:
    add(store, "video_1", deadline_seconds=1e-6)
    store.claim()
    add(store, "video_2", deadline_seconds=1e-6)
    add(store, "video_3", deadline_seconds=1e6)
    add(store, "video_4", deadline_seconds=1e-6)
    store.cancel("video_4")
    assert {job.id for job in store.overdue()} == {"video_1", "video_2"}


def test_pages_go_from_the_newest_to_the_oldest(store: Store) -> None:
    jobs = [add(store, f"video_{number}", "a" if number % 2 else "b") for number in range(6)]
    assert [job.id for job in store.newest("a", 2)] == ["video_5", "video_3"]
    assert [job.id for job in store.newest("a", 2, after=jobs[3].number)] == ["video_1"]
    store.cancel("video_1")
    assert [job.id for job in store.newest(None, 9, status="cancelled")] == ["video_1"]


def test_rows_are_forgotten_without_their_results_only(store: Store) -> None:
    for name in ("video_1", "video_2", "video_3"):
        add(store, name)
    completed(store, "video_1", 10)
    completed(store, "video_2", 5)
    assert store.kept_nbytes() == 15
    assert [job.id for job in store.with_content()] == ["video_1", "video_2"]
    assert not store.with_content(before=time.time() - 60)
    assert store.forget(time.time() + 1) == 0
    assert store.forget_content("video_1")
    assert not store.forget_content("video_1")
    assert store.forget(time.time() - 60) == 0
    assert store.forget(time.time() + 1) == 1
    assert set(store.among(["video_1", "video_2", "video_3", "video_4"])) == {"video_2", "video_3"}


def test_a_second_server_is_refused(store: Store, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "NOTICE_SECONDS", 0.2)
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    first, other = Ownership(folders[0], store.engine), Store(url)
    with pytest.raises(InputError, match=r"another adacache-serve uses .*first"):
        Ownership(folders[0], other.engine)
    with pytest.raises(InputError, match="another adacache-serve uses the database"):
        Ownership(folders[1], other.engine)
    assert first.still()
    first.release()
    second = Ownership(folders[0], other.engine)
    second.release()
    other.close()


def test_a_service_keeps_its_jobs_there(
    store: Store, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "fake")
    bench = Bench(tmp_path, tmp_path / "fake", monkeypatch, database=url, in_flight=2)
    done, running, waiting = bench.submit(key="a key"), bench.submit(), bench.submit()
    bench.worker.completes(bench.worker.begun()[0])
    bench.becomes(done, "completed")
    assert bench.submit(key="a key").id == done.id
    bench.crash()
    bench.start()
    assert [(begin.job, begin.attempt) for begin in bench.worker.begun()] == [(running.id, 2), (waiting.id, 2)]
    assert bench.service.cancel(running.id)
    bench.service.stop()
    assert {name: job.status for name, job in store.among([done.id, running.id, waiting.id]).items()} == {
        done.id: "completed",
        running.id: "cancelled",
        waiting.id: "queued",
    }


def test_a_server_waits_for_the_workers_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[None] = []

    def look(file: BinaryIO) -> bool:
        """Note the server's repeated checks of the lock."""
        looks.append(None)
        return locked(file)

    locked = locks.try_lock
    monkeypatch.setattr(locks, "try_lock", look)
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0)
    store = Store(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    with (tmp_path / locks.WORKERS).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(InputError, match="a worker process of an earlier adacache-serve"):
            Ownership(tmp_path, store.engine)
        monkeypatch.setattr(locks, "WAIT_SECONDS", HANG_SECONDS)
        looks.clear()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(Ownership, tmp_path, store.engine)
            until(lambda: len(looks) > 1)
            assert not waiting.done()
            file.close()
            waiting.result().release()
    store.close()


def test_postgresql_that_was_away_is_taken_again_or_was_taken(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "NOTICE_SECONDS", 0.2)
    until(lambda: answers(postgresql_url))
    stores = [Store(postgresql_url), Store(postgresql_url)]
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    first = Ownership(folders[0], stores[0].engine)

    def cut() -> None:
        with stores[1].engine.connect() as connection:
            query = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            connection.execute(text(query)).all()

    cut()
    assert first.still()
    with pytest.raises(InputError):
        Ownership(folders[1], stores[1].engine)
    cut()
    taken = until(lambda: owned(folders[1], stores[1]))
    assert not first.still()
    taken.release()
    assert first.still()
    first.release()
    for store in stores:
        store.close()


def owned(folder: Path, store: Store) -> Ownership | None:
    try:
        return Ownership(folder, store.engine)
    except InputError:
        return None
