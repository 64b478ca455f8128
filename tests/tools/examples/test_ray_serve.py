"""tools/examples/ray_serve.py on a local Ray with two replicas, on the fake model."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adacache_engines.bundle.files import open_bundle
from adacache_engines.contract.fake import FakeBackend
from adacache_runtime.caching.presets import PRESETS
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_serve.device.video_file import write_events
from tests.helpers.serving.fake_server import functions, write_model
from tests.helpers.serving.http_jobs import create, ended
from tests.helpers.waiting import HANG_SECONDS, until

pytest.importorskip("ray", reason="ray[serve] is not installed")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
SERVER = ROOT / "tests" / "helpers" / "serving" / "ray_server.py"
TIMEOUT_SECONDS = 2.0  # of the proxy
VIDEOS = "/v1/videos"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "fake"
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[httpx.Client]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    paths = (ROOT, ROOT / "engines", ROOT / "runtime", ROOT / "tests")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "RAY_USAGE_STATS_ENABLED": "0"}
    log = tmp_path_factory.mktemp("ray") / "log.txt"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, SERVER, bundle, str(port), str(TIMEOUT_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n", log.read_text(errors="replace")[-4000:]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=HANG_SECONDS) as client:
            yield client
    finally:
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def alone(bundle: Path, output: Path, **asked: Any) -> bytes:
    pipeline = Pipeline(open_bundle(bundle), FakeBackend(functions()))
    for _ in write_events(pipeline.prepare(Request(**asked)), output):
        pass
    return output.read_bytes()


def test_jobs_spread_over_both_replicas_and_equal_the_runtime(
    client: httpx.Client, bundle: Path, tmp_path: Path
) -> None:
    asked = {"steps": 10, "sampler": "unipc"}
    names = [create(client, prompt="slow", seed=seed, policy="interval-2", **asked) for seed in range(6)]
    jobs = [ended(client, name) for name in names]
    assert [job["status"] for job in jobs] == ["completed"] * 6
    assert len({job["replica"] for job in jobs}) == 2
    for seed, name in enumerate(names):
        content = client.get(f"{VIDEOS}/{name}/content")
        assert content.headers["content-type"] == "video/mp4"
        request = {"prompts": ("slow",), "seed": seed, "policy": PRESETS["interval-2"], **asked}
        assert content.content == alone(bundle, tmp_path / f"{seed}.mp4", **request)
    assert [call["computed"] for call in jobs[0]["calls"][:3]] == [True, False, True]


def test_a_job_may_take_longer_than_the_proxy_waits(client: httpx.Client) -> None:
    began = time.monotonic()
    job = ended(client, create(client, prompt="slow", steps=100))
    assert job["status"] == "completed"
    assert time.monotonic() - began > TIMEOUT_SECONDS


def test_a_job_is_cancelled_and_its_replica_is_free(client: httpx.Client) -> None:
    names = [create(client, prompt="slow", steps=900) for _ in range(3)]  # both replicas, and one that waits

    def calls() -> list[int]:
        return [len(client.get(f"{VIDEOS}/{name}").json()["calls"]) for name in names]

    until(lambda: sorted(map(bool, calls())) == [False, True, True])
    for name in names:
        assert client.delete(f"{VIDEOS}/{name}").json()["status"] == "cancelled"
    assert ended(client, create(client, prompt="boat"))["status"] == "completed"
    after = calls()
    assert ended(client, create(client, prompt="bird"))["status"] == "completed"
    assert calls() == after
    assert client.get(f"{VIDEOS}/{names[0]}/content").status_code == 409


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ({"policy": "sometimes"}, "policy"),
        ({"size": "x"}, "size"),
        ({"sampler": "ddim"}, "sampler"),
        ({"model": "boats"}, "model"),
    ],
)
def test_a_refusal_names_the_field(client: httpx.Client, order: dict, field: str) -> None:
    answer = client.post(VIDEOS, json={"prompt": "boat", **order})
    assert answer.status_code == 422
    assert answer.json()["detail"]["field"] == field


def test_an_error_is_that_of_its_job(client: httpx.Client) -> None:
    job = ended(client, create(client, prompt="break"))
    assert (job["status"], job["error"].splitlines()[-1]) == ("failed", "the fake encoder breaks at this prompt")


def test_a_replica_that_dies_fails_its_job_alone(client: httpx.Client) -> None:
    deadly = create(client, prompt="die")
    job = ended(client, deadly)
    assert job["status"] == "failed"
    assert job["error"]
    assert ended(client, create(client, prompt="boat"))["status"] == "completed"
