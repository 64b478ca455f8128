"""Disks that become full, quotas and limits of a file's size, wherever the server writes for a request."""

import base64
import errno
import os
import resource
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
import starlette.formparsers
from sqlalchemy import event

from adacache_serve.device.messages import Failed
from adacache_serve.jobs import publishing
from adacache_serve.jobs.service import Service
from adacache_serve.orders.images import write_image
from adacache_serve.orders.schema import CreateVideo
from adacache_serve.settings import Settings
from adacache_serve.triton.model import TritonPythonModel
from tests.helpers.hostile_pictures.pictures import encoded, picture
from tests.helpers.serving.fake_server import served, service, write_model
from tests.helpers.serving.fake_workers import Bench
from tests.helpers.serving.full_disk import full_disk
from tests.helpers.serving.http_jobs import create, ended
from tests.helpers.serving.worker_rig import PICTURE, Rig, fake
from tests.helpers.waiting import until

Tries = Callable[[Iterable[Any]], Iterator[Any]]
VIDEOS = "/v1/videos"
FULL = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]
IMAGE = base64.b64encode(encoded(picture(), "PNG")).decode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "fake"
    write_model(folder, conditioned=True)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Service:
    return service(Settings(tmp_path_factory.mktemp("data")), model)


@pytest.fixture(scope="module")
def client(made: Service) -> Iterator[httpx.Client]:
    with served(made) as client:
        yield client


def nothing_is_left(client: httpx.Client, made: Service) -> None:
    """Check that no job and no file is left of refused requests, and that the next one is served."""
    assert list(made.images.iterdir()) == []
    assert client.get(VIDEOS, params={"status": "queued"}).json()["data"] == []
    assert ended(client, create(client, image=IMAGE))["status"] == "completed"
    until(lambda: not list(made.images.iterdir()))


def test_no_room_for_the_image_of_an_order(client: httpx.Client, made: Service, tries: Tries) -> None:
    for number in tries(FULL):
        with full_disk(made.images, number) as tried:
            refused = client.post(VIDEOS, json={"prompt": "a", "image": IMAGE})
        assert (refused.status_code, refused.json()["status"], len(tried)) == (507, 507, 1)
        nothing_is_left(client, made)


def test_no_room_for_the_body_of_a_form(
    client: httpx.Client, made: Service, monkeypatch: pytest.MonkeyPatch, tries: Tries
) -> None:
    """A large file of a form lies on the disk while the form is read."""
    spooled = starlette.formparsers.SpooledTemporaryFile
    for number in tries(FULL):

        class Full(spooled[bytes]):  # type: ignore[valid-type,misc]
            def write(self, content: Any, number: int = number) -> int:
                if self._max_size and self.tell() + len(content) > self._max_size:
                    raise OSError(number, os.strerror(number))
                return int(super().write(content))

        file = ("a.png", bytes(3 * 2**20), "image/png")
        with monkeypatch.context() as patch:
            patch.setattr(starlette.formparsers, "SpooledTemporaryFile", Full)
            refused = client.post(VIDEOS, files={"prompt": (None, "a"), "image": file})
        assert (refused.status_code, refused.json()["status"]) == (507, 507)
        nothing_is_left(client, made)


def test_no_room_in_the_database(client: httpx.Client, made: Service, tries: Tries) -> None:
    """SQLite itself says so, since its number of pages is limited."""
    engine = made.store.engine

    def limited(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA max_page_count=1")  # SQLite takes the present number for less than that

    engine.dispose()
    event.listen(engine, "connect", limited)
    try:
        for order in tries([{"image": IMAGE}, {}, {"image": IMAGE, "priority": 0}]):
            refused = client.post(VIDEOS, json={"prompt": "boat " * 700, **order})
            for _ in range(50):  # the last page may have had room
                if refused.status_code != 202:
                    break
                refused = client.post(VIDEOS, json={"prompt": "boat " * 700, **order})
            assert (refused.status_code, refused.headers["Content-Type"]) == (503, "application/problem+json")
            assert client.get("/healthz").status_code == 200
    finally:
        event.remove(engine, "connect", limited)
        engine.dispose()
    until(lambda: not client.get(VIDEOS, params={"status": "queued"}).json()["data"])
    until(lambda: not list(made.images.iterdir()))
    nothing_is_left(client, made)


def test_a_limit_of_a_files_size_set_by_the_system(tmp_path: Path) -> None:
    """The kernel itself refuses in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(OSError, match="too large") as refused:
            write_image(tmp_path / "a.npy", np.zeros((1, 1000, 1000, 3), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("frames", [1, 4])
def test_no_room_for_a_video(tmp_path: Path, frames: int, tries: Tries) -> None:
    """The job fails by itself, without the path of the file, and the others of the worker go on."""
    (tmp_path / "spool" / "full").mkdir(parents=True)
    rig = Rig(fake(tmp_path / "fake"), tmp_path / "spool")
    for number in tries(FULL):
        with full_disk(tmp_path / "spool" / "full", number):
            rig.begin(f"full/{number}", frames=frames)
            rig.begin(f"fits-{number}", frames=frames, image=PICTURE if frames > 1 else None)
            rig.finish()
        (failed,) = rig.of(Failed, f"full/{number}")
        assert failed.code == "storage"
        assert str(tmp_path) not in failed.message
        assert list((tmp_path / "spool" / "full").iterdir()) == []
        assert [said.job for said in rig.of(Failed)] == [f"full/{seen}" for seen in FULL[: FULL.index(number) + 1]]
        assert len(list((tmp_path / "spool").glob(f"fits-{number}.[mp]*"))) == 1


def test_no_room_among_the_results(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tries: Tries) -> None:
    """They are on another disk than the spool: the copy is tried again, then the job fails, and nothing is left."""
    replace = Path.replace

    def other_disk(path: Path, target: Path) -> Path:
        if path.parent != Path(target).parent:
            raise OSError(errno.EXDEV, "another disk")
        return replace(path, target)

    monkeypatch.setattr(publishing, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(publishing, "LEAVE_SECONDS", 0.5)
    monkeypatch.setattr(Path, "replace", other_disk)
    bench = Bench(tmp_path, model, monkeypatch)
    try:
        for number in tries(FULL):
            job = bench.submit()
            with full_disk(bench.settings.data / "results", number) as tried:
                bench.worker.completes(bench.worker.begun(job)[0])
                failed = bench.becomes(job, "failed")
            assert (failed.error or {})["code"] == "storage"
            assert len(tried) == 3
            until(lambda: bench.files("spool") == [])
            assert bench.files("results") == []
            kept = bench.submit()
            bench.worker.completes(bench.worker.begun(kept)[0])
            bench.becomes(kept, "completed")
            bench.service.retention.delete_content(bench.job(kept))
    finally:
        bench.service.stop()


def test_no_room_for_the_folder_of_a_video(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tries: Tries
) -> None:
    """The job waits until there is room."""
    bench = Bench(tmp_path, model, monkeypatch)
    try:
        for number in tries(FULL):

            def full(*_: object, number: int = number, **__: object) -> None:
                raise OSError(number, os.strerror(number))

            with monkeypatch.context() as patch:
                patch.setattr(Path, "mkdir", full)
                job = bench.submit(image=True)
                assert bench.status(job) == "queued"
            assert bench.files("spool") == []
            bench.service.dispatcher.dispatch()
            bench.worker.completes(bench.worker.begun(job)[0])
            bench.becomes(job, "completed")
            until(lambda: bench.files("images") == [])
    finally:
        bench.service.stop()


class TritonError:
    """A stand-in for Triton's class of the same name, with the codes that are used here."""

    UNAVAILABLE, INVALID_ARG = 14, 3

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


def test_no_room_for_the_image_of_a_request_to_triton(tmp_path: Path, tries: Tries) -> None:
    """The request is refused, and its place is free for the next."""
    triton, sender = Mock(TritonError=TritonError, InferenceResponse=lambda error: error), Mock()
    model = object.__new__(TritonPythonModel)
    model._triton, model._files = triton, Mock()
    model._files.name = str(tmp_path)
    model._names, model._places, model._pending = map(str, range(9)), threading.Semaphore(0), {}
    for number in tries(FULL):
        with full_disk(tmp_path, number) as tried:
            model._begin(sender, CreateVideo(prompt="a", seed=1), PICTURE)
        assert len(tried) == 1
        refused = sender.send.call_args.args[0]
        assert refused.message.startswith("the image cannot be stored")
        assert refused.code == TritonError.UNAVAILABLE
        assert model._places.acquire(blocking=False)
        assert (model._pending, list(tmp_path.iterdir())) == ({}, [])
