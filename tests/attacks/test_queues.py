"""Jobs that keep others waiting"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adacache_serve.jobs.service import BusyError
from adacache_serve.keys import Client
from tests.helpers.serving.fake_workers import Benches
from tests.helpers.serving.gated_results import left_alone
from tests.helpers.waiting import until

Tries = Callable[[Iterable[Any]], Iterator[Any]]
MANY = 100


def test_many_jobs_of_one_client_keep_no_other_client_waiting(benches: Benches, tries: Tries) -> None:
    bench = benches(in_flight=2, queue=5000, queue_per_client=5000)
    many = [bench.submit(Client("many")) for _ in tries(range(MANY))]
    one, another = bench.submit(Client("one")), bench.submit(Client("another"))
    for begin in bench.worker.begun():
        bench.worker.completes(begin)
    assert {begin.job for begin in bench.worker.begun()[2:]} == {one.id, another.id}
    urgent = bench.submit(Client("many"), priority=1)
    bench.worker.completes(bench.worker.begun(one)[0])
    assert bench.worker.begun()[-1].job == urgent.id
    assert bench.status(many[2]) == "queued"
    assert bench.service.store.ahead("many") == 0


def test_a_client_whose_queue_is_full_is_told_and_the_others_are_not(benches: Benches, tries: Tries) -> None:
    bench = benches(in_flight=1, queue=1000, queue_per_client=10)
    for _ in range(11):  # one is at the worker
        bench.submit(Client("many"))
    for _ in tries(range(MANY)):
        with pytest.raises(BusyError) as busy:
            bench.submit(Client("many"))
        assert busy.value.retry_after >= 1
    assert bench.status(bench.submit(Client("one"))) == "queued"


@pytest.mark.parametrize("end", ["dies", "lies", "loses its video"])
def test_a_job_that_comes_to_nothing_each_time_ends_and_the_next_is_made(
    benches: Benches, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = benches(in_flight=1, attempts=3)
    bad = bench.submit()
    put = bench.results.put

    def lose(file: Path, name: str) -> None:
        """Lose a video between the worker's word and the upload."""
        if end == "loses its video" and name.startswith(bad.id):
            file.unlink()
            raise OSError("it is gone")
        put(file, name)

    monkeypatch.setattr(bench.results, "put", lose)
    for number in (1, 2, 3):
        begin = until(lambda number=number: bench.worker.begun(bad)[number - 1 : number])[0]
        assert begin.attempt == number
        bench.worker.turn(begin)
        if end == "dies":
            bench.worker.dies()
        elif end == "lies":
            bench.worker.lies(begin)
        else:
            bench.worker.completes(begin)
    failed = bench.becomes(bad, "failed")
    assert failed.attempts == 3
    assert failed.error["code"] == ("storage" if end == "loses its video" else "worker_died")
    good = bench.submit()
    begin = until(lambda: bench.worker.begun(good))[0]
    bench.worker.completes(begin)
    assert bench.becomes(good, "completed").attempts == 1
    left_alone(bench)
