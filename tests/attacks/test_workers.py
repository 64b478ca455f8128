"""Workers that die, hang, talk nonsense or compute NaN"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from adacache_engines.contract.fake import FakeBackend
from adacache_runtime.pipeline import Pipeline
from adacache_serve.device import supervisor
from adacache_serve.device.messages import Failed
from adacache_serve.jobs import service
from adacache_serve.jobs.service import Service
from adacache_serve.jobs.store import Job
from adacache_serve.keys import ANONYMOUS
from adacache_serve.orders.schema import CreateVideo
from adacache_serve.settings import Settings
from tests.helpers.model import fake_model
from tests.helpers.model.fake_vae import FACTOR, SPACE
from tests.helpers.serving import fake_server, hostile_worker
from tests.helpers.serving.worker_rig import MODEL, Rig
from tests.helpers.waiting import until

Tries = Callable[[Iterable[Any]], Iterator[Any]]
Values = Mapping[str, Any]


def test_what_a_worker_does_to_its_job_costs_no_other_job(
    tmp_path: Path, model: Path, tries: Tries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "work", hostile_worker.work)
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(service, "WATCH_SECONDS", 0.05)
    settings = Settings(tmp_path, attempts=2, in_flight=2, hang_seconds=3600)
    made = fake_server.service(settings, model, opener=dict)  # type: ignore[arg-type]  # no models are opened
    made.start()
    try:
        for kind in tries(hostile_worker.KINDS):
            restarts = made.workers[0].restarts
            jobs = [made.submit(CreateVideo(prompt=prompt), ANONYMOUS)[0] for prompt in (kind, "boat", "boat")]
            if kind == "stopped":
                until(lambda: stopped(made))
                made.workers[0].heard -= 4000
                for job in jobs:
                    if progress := made.progress(job.id):
                        progress.began -= 4000
            ended = until(lambda jobs=jobs: completed(made, jobs))
            costs = kind != "words about others"
            assert [job.attempts for job in ended] == [1 + costs, 1, 1], kind
            assert [job.deaths for job in ended] == [int(costs), 0, 0], kind
            assert made.workers[0].restarts - restarts == (costs and kind != "an end without a video"), kind
            for job in ended:
                assert (tmp_path / "results" / f"{job.id}.mp4").read_bytes() == hostile_worker.VIDEO
    finally:
        made.stop()
    assert list((tmp_path / "spool").iterdir()) == []


def completed(service: Service, jobs: list[Job]) -> list[Job] | None:
    """Return jobs as they are when all are completed, else None."""
    now = [job for job in map(service.store.get, [job.id for job in jobs]) if job is not None]
    assert not [job.error for job in now if job.status == "failed"]
    return now if all(job.status == "completed" for job in now) and not len(service.publisher) else None


def stopped(service: Service) -> bool:
    pid = service.workers[0].pid
    return pid is not None and psutil.Process(pid).status() == psutil.STATUS_STOPPED


@pytest.mark.parametrize("stage", ["encoder", "text", "embed", fake_model.BLOCKS[0], "final", "decoder"])
def test_nan_of_an_engine_is_its_jobs_and_the_next_video_is_right(tmp_path: Path, tries: Tries, stage: str) -> None:
    plain: dict[str, Any] = {**fake_server.functions(), "decoder": enlarged}
    poison: list[float] = []

    def poisoned(given: Values) -> Values:
        made = {name: np.array(value) for name, value in plain[stage](given).items()}
        for value in poison:
            next(iter(made.values()))[...] = value
        return made

    bundle = fake_server.write_model(tmp_path / MODEL, latent=SPACE)
    rig = Rig({MODEL: Pipeline(bundle, FakeBackend({**plain, stage: poisoned}))}, tmp_path / "out")
    rig.begin("before")
    expected = rig.finish()["before"]
    saturates = stage in ("encoder", "text")  # the fake model makes a finite number of infinity there
    for value in tries((np.nan,) if saturates else (np.nan, np.inf, -np.inf)):
        poison[:] = [value]
        rig.begin(f"bad {value}")
        with np.errstate(all="ignore"):
            rig.finish()
        poison.clear()
        (failed,) = rig.of(Failed, f"bad {value}")
        assert failed.code == "NonFiniteError"
        assert failed.message.startswith("NaN or infinity in ")
        assert ("decoder" in failed.message) == (stage == "decoder")
        rig.begin(f"after {value}")
        assert rig.finish()[f"after {value}"] == expected
    assert {path.name.partition(" ")[0] for path in (tmp_path / "out").iterdir()} == {
        "after",
        "before.json",
        "before.mp4",
    }


def enlarged(given: Values) -> Values:
    return {"pixels": given["latents"].repeat(FACTOR, 2).repeat(FACTOR, 3) / 2}
