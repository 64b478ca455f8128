"""A job is checked once in the server, to validate its order, and once in the worker, to make its video."""

from collections import Counter
from functools import partial
from pathlib import Path

from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import served, service, write_model
from tests.helpers.serving.http_jobs import create, ended
from tests.helpers.serving.work_counts import (
    ALLOCATED,
    COUNTED,
    NOISE,
    SETTLED,
    TOKENISED,
    counted,
    open_counting_models,
    read_counts,
)


def test_a_job_is_checked_once_in_the_server_and_prepared_once_in_the_worker(tmp_path: Path) -> None:
    folder, log = tmp_path / "fake", tmp_path / "work.log"
    write_model(folder)
    here: Counter[str] = Counter()
    made = service(Settings(tmp_path / "data"), folder, opener=partial(open_counting_models, log, (folder,)))
    restore = counted(lambda word: here.update([word]))
    try:
        with served(made) as client:
            here.clear()
            before = read_counts(log)  # the warm-up
            job = ended(client, create(client, seed=5, steps=4, policy="adacache-fast"))
    finally:
        restore()
    assert job["status"] == "completed"
    assert here == {SETTLED: 1, TOKENISED: 1}
    assert read_counts(log) - before == {SETTLED: 1, TOKENISED: 1, COUNTED: 1, ALLOCATED: 1, NOISE: 1}
