"""The way of a job over HTTP, through a worker process, to the video."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from adacache_engines.bundle.files import open_bundle
from adacache_engines.contract.fake import FakeBackend
from adacache_runtime.caching.presets import PRESETS
from adacache_runtime.events import Denoised
from adacache_runtime.media.video import to_pixels, write_video
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import events, functions, served, service, write_model
from tests.helpers.serving.http_jobs import ended
from tests.helpers.waiting import until


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "fake"
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[httpx.Client]:
    with served(service(Settings(tmp_path_factory.mktemp("data")), bundle)) as client:
        yield client


def generated(bundle: Path, **asked: Any) -> Denoised:
    """In this process, by the runtime alone."""
    return Pipeline(open_bundle(bundle), FakeBackend(functions())).generate(Request(**asked))


def test_the_video_is_the_one_that_the_runtime_makes(client: httpx.Client, bundle: Path, tmp_path: Path) -> None:
    order = {"prompt": "a slow boat", "seed": 5, "policy": "interval-2", "steps": 4}
    answer = client.post("/v1/videos", json=order)
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/videos/{answer.json()['id']}"
    video = ended(client, answer.json()["id"])
    assert video["status"] == "completed"
    assert video["progress"] == 100
    alone = generated(bundle, prompts=("a slow boat",), seed=5, policy=PRESETS["interval-2"], steps=4)
    assert (video["trace"]["calls"], video["trace"]["computed"]) == (4, len(alone.trace.computed()))
    write_video(tmp_path / "alone.mp4", to_pixels(alone.latents[0]), 24.0)
    content = client.get(video["content"])
    assert content.headers["content-type"] == "video/mp4"
    assert content.content == (tmp_path / "alone.mp4").read_bytes()
    part = client.get(video["content"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content.content[10:20])


def test_events_tell_every_call_in_order(client: httpx.Client, bundle: Path) -> None:
    name = client.post("/v1/videos", json={"prompt": "slow", "policy": "interval-3"}).json()["id"]
    told = events(client.get(f"/v1/videos/{name}/events").text)
    calls = [data for kind, data in told if kind == "call"]
    assert [call["call"] for call in calls] == list(range(1, 7))
    alone = generated(bundle, prompts=("slow",), policy=PRESETS["interval-3"])
    assert [call["call"] for call in calls if call["computed"]] == alone.trace.computed()
    assert told[-1][0] == "status"
    assert told[-1][1]["status"] == "completed"
    again = events(client.get(f"/v1/videos/{name}/events", headers={"Last-Event-ID": "1-4"}).text)
    assert [data["call"] for kind, data in again if kind == "call"] == [5, 6]


def test_a_running_job_is_cancelled_between_two_calls(client: httpx.Client) -> None:
    name = client.post("/v1/videos", json={"prompt": "slow", "steps": 900}).json()["id"]
    until(lambda: client.get(f"/v1/videos/{name}").json()["trace"])
    assert client.delete(f"/v1/videos/{name}").json()["status"] == "cancelled"
    assert client.get(f"/v1/videos/{name}/content").status_code == 409
    after = client.post("/v1/videos", json={"prompt": "boat"}).json()["id"]
    assert ended(client, after)["status"] == "completed"


def test_an_error_is_that_of_its_job(client: httpx.Client) -> None:
    name = client.post("/v1/videos", json={"prompt": "break"}).json()["id"]
    video = ended(client, name)
    assert video["status"] == "failed"
    assert video["error"] == {"code": "EngineError", "message": "the fake encoder breaks at this prompt"}


@pytest.mark.slow
def test_a_job_whose_worker_dies_every_time_fails_and_others_do_not(client: httpx.Client) -> None:
    deadly = client.post("/v1/videos", json={"prompt": "die"}).json()["id"]
    harmless = client.post("/v1/videos", json={"prompt": "boat"}).json()["id"]
    assert ended(client, deadly)["error"]["code"] == "worker_died"
    assert ended(client, deadly)["attempts"] == 3
    assert ended(client, harmless)["status"] == "completed"


def test_a_picture_is_an_image(client: httpx.Client) -> None:
    name = client.post("/v1/videos", json={"prompt": "boat", "frames": 1}).json()["id"]
    video = ended(client, name)
    content = client.get(video["content"])
    assert content.headers["content-type"] == "image/png"
    assert content.content.startswith(b"\x89PNG")
    assert np.isfinite(video["trace"]["wall_ms"])
