"""The places where videos are kept: a folder, and an S3-compatible store on this machine."""

import errno
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from adacache_engines.errors import InputError
from adacache_serve.jobs import publishing
from adacache_serve.jobs.results import Bucket, Folder, Results, open_results
from tests.helpers.serving.fake_server import write_model
from tests.helpers.serving.fake_workers import Bench
from tests.helpers.serving.s3_server import BUCKET, s3_server
from tests.helpers.waiting import until

CONTENT = bytes(range(256)) * 8


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """The URL of a bucket."""
    with s3_server():
        yield f"s3://{BUCKET}/of/tests"


@pytest.fixture(params=["folder", "s3"])
def results(request: pytest.FixtureRequest, tmp_path: Path) -> Results:
    if request.param == "folder":
        return open_results(str(tmp_path / "results"))
    bucket = open_results(request.getfixturevalue("s3_url"))
    for name in list(bucket.names()):
        bucket.delete(name)
    return bucket


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "video.mp4"
    path.write_bytes(CONTENT)
    return path


def read(results: Results, name: str, **headers: str) -> httpx.Response:
    """Read a result through its link, or from its file where it has no link."""
    link = results.link(name)
    if link is None:
        path = results.path(name)
        assert path is not None
        return httpx.Response(200, content=path.read_bytes())
    return httpx.get(link, headers=headers)


def test_a_video_is_put_read_and_deleted(results: Results, video: Path) -> None:
    assert list(results.names()) == []
    assert not results.has("video_1.mp4")
    results.put(video, "video_1.mp4")
    assert not video.exists()
    assert results.has("video_1.mp4")
    assert list(results.names()) == ["video_1.mp4"]
    assert read(results, "video_1.mp4").content == CONTENT
    results.delete("video_1.mp4")
    results.delete("video_1.mp4")
    assert not results.has("video_1.mp4")
    assert list(results.names()) == []


def test_one_of_the_same_name_is_replaced(results: Results, video: Path) -> None:
    results.put(video, "video_1.mp4")
    video.write_bytes(b"again")
    results.put(video, "video_1.mp4")
    assert read(results, "video_1.mp4").content == b"again"


def test_a_video_that_cannot_be_put_stays_where_it_is(
    results: Results, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_rest: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    if isinstance(results, Bucket):
        monkeypatch.setattr(results._files, "put_file", refuse)
    else:
        monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="full"):
        results.put(video, "video_1.mp4")
    assert video.read_bytes() == CONTENT
    assert not results.has("video_1.mp4")


def test_a_presigned_link_takes_ranges_and_no_change(s3_url: str, video: Path) -> None:
    bucket = open_results(s3_url)
    bucket.put(video, "video_2.mp4")
    whole = read(bucket, "video_2.mp4")
    assert whole.headers["content-type"] == "video/mp4"
    part = read(bucket, "video_2.mp4", Range="bytes=100-199")
    assert (part.status_code, part.content) == (206, CONTENT[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(CONTENT)}"
    assert "X-Amz-Signature" in bucket.link("video_2.mp4") or "Signature" in bucket.link("video_2.mp4")
    assert bucket.path("video_2.mp4") is None


@pytest.mark.usefixtures("s3_url")
def test_a_bucket_that_cannot_be_used_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"s3://no-such-bucket/x cannot be used"):
        open_results("s3://no-such-bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(InputError, match="AWS_ENDPOINT_URL"):
        open_results("s3://elsewhere")


def test_a_folder_on_another_disk_gets_a_copy(tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path / "results")
    replace = Path.replace

    def other_disk(path: Path, target: Path) -> Path:
        if path.parent != target.parent:
            raise OSError(errno.EXDEV, "another disk")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", other_disk)
    folder.put(video, "video_1.mp4")
    assert not video.exists()
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["video_1.mp4"]
    assert (tmp_path / "results" / "video_1.mp4").read_bytes() == CONTENT


def test_an_upload_that_a_restart_interrupted_is_done_by_the_next_server(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "LEAVE_SECONDS", 0.5)
    write_model(tmp_path / "fake")
    bench = Bench(tmp_path, tmp_path / "fake", monkeypatch, results=s3_url, keep_nbytes=len(CONTENT))
    tries = []

    def cut(*paths: str) -> None:
        tries.append(paths)
        raise ConnectionError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(bench.results._files, "put_file", cut)
        job = bench.submit()
        bench.worker.completes(bench.worker.begun()[0], CONTENT)
        until(lambda: tries)
        bench.crash()
    bench.start()
    assert bench.becomes(job, "completed").attempts == 1
    assert bench.worker.begun() == []
    assert read(bench.results, f"{job.id}.mp4").content == CONTENT
    newer = bench.submit()
    bench.worker.completes(bench.worker.begun()[0], CONTENT)
    bench.becomes(newer, "completed")
    bench.service.retention.retain()
    assert bench.job(job).content is None
    assert not bench.results.has(f"{job.id}.mp4")
    assert read(bench.results, f"{newer.id}.mp4").content == CONTENT
    bench.service.stop()
