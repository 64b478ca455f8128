"""Worker processes whose models make no video."""

import json
import multiprocessing
import os
import shutil
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from adacache_serve.device.process import work
from adacache_serve.device.supervisor import FIRST_PAUSE
from adacache_serve.device.worker import Models
from adacache_serve.jobs.results import open_results
from adacache_serve.jobs.service import Service
from adacache_serve.jobs.store import Store
from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import write_model
from tests.helpers.serving.worker_rig import MODEL, fake
from tests.helpers.waiting import HANG_SECONDS, until


def broken_models(settings: Settings) -> Models:
    return fake(settings.data / "broken", own={"final": lambda given: {"prediction": given["latents"] * np.nan}})


def forbidden(connection: Connection, settings: Settings) -> None:
    """Run a worker in a process that may not lower its priority."""

    def nice(_increment: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    os.nice = nice
    work(connection, settings, None, broken_models)


def test_a_model_that_makes_no_video_is_not_served(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The worker logs why and ends without a message. It makes no difference that it could not lower its priority."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=forbidden, args=(theirs, Settings(tmp_path)))
    process.start()
    theirs.close()
    process.join(HANG_SECONDS)
    assert process.exitcode == 1
    with pytest.raises(EOFError):
        ours.recv_bytes()
    (line,) = capfd.readouterr().err.splitlines()
    said = json.loads(line)
    assert said["level"] == "error"
    assert said["message"].startswith("worker ends: NaN or infinity in call 1 of 5")


@pytest.mark.slow
def test_a_server_is_not_ready_without_its_models_and_does_not_spin(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def pauses() -> list[float]:
        return [record.again_in_seconds for record in caplog.records if record.message == "worker died"]

    bundle = write_model(tmp_path / "model")
    results = open_results(str(tmp_path / "results"))
    store = Store(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    made = Service(Settings(tmp_path), {MODEL: bundle}, store, results, again_broken)
    made.start()
    try:
        until(lambda: len(pauses()) > 2)
        assert not made.ready
    finally:
        made.stop()
    assert pauses()[:3] == [2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]


def again_broken(settings: Settings) -> Models:
    shutil.rmtree(settings.data / "broken", ignore_errors=True)
    return broken_models(settings)
