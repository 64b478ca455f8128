"""Pictures that clients send: what is decoded, by whom, and what of it comes into the video."""

import base64
import errno
import io
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image as Pillow

from adacache_engines.bundle.files import open_bundle
from adacache_engines.bundle.latent_space import ResizeRule
from adacache_engines.contract.fake import FakeBackend
from adacache_engines.errors import InputError
from adacache_runtime.caching.presets import PRESETS
from adacache_runtime.media.pictures import middle_square, read_image, resize, resize_image, resize_to_fill
from adacache_runtime.media.video import to_pixels, write_video
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_serve.jobs import service as jobs
from adacache_serve.keys import ANONYMOUS
from adacache_serve.orders import images
from adacache_serve.orders.images import decode_image
from adacache_serve.orders.schema import CreateVideo
from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import functions, served, service, write_model
from tests.helpers.serving.full_disk import full_disk
from tests.helpers.serving.held_images import held, post
from tests.helpers.serving.http_jobs import ended
from tests.helpers.waiting import HANG_SECONDS, until


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "starts"
    write_model(folder, conditioned=True)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def client(data: Path, bundle: Path) -> Iterator[httpx.Client]:
    with served(service(Settings(data), bundle)) as client:
        yield client


def newest(client: httpx.Client) -> str:
    return str(client.get("/v1/videos", params={"limit": 1}).json()["last_id"])


def picture(mode: str = "RGB", size: tuple[int, int] = (7, 5)) -> Pillow.Image:
    random = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Pillow.fromarray(random).convert(mode)


def encoded(image: Pillow.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


ANIMATED = {"save_all": True, "append_images": [picture("L")], "lossless": True}
GOOD = {
    "grey": encoded(picture("L")),
    "alpha": encoded(picture("RGBA")),
    "palette": encoded(picture("P")),
    "cmyk": encoded(picture("CMYK"), "JPEG", quality=95),
    "grey jpeg": encoded(picture("L"), "JPEG"),
    "webp": encoded(picture(), "WEBP", lossless=True),
    "animated png": encoded(picture(), "PNG", save_all=True, append_images=[picture("L")]),
}
BAD = {
    "nothing": b"",
    "text": b"a picture",
    "playlist": b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
    "list of files": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "gif": encoded(picture("P"), "GIF"),
    "wave": b"RIFF\x24\0\0\0WAVEfmt " + bytes(28),
    "half a png": encoded(picture(size=(64, 64)))[:2000],
    "half a webp": encoded(picture(size=(64, 64)), "WEBP", lossless=True)[:500],
    "png of one number": b"\x89PNG\r\n\x1a\n",
    "playlist in a png": b"\x89PNG\r\n\x1a\n#EXTM3U\n/etc/passwd\n",
    "20000 x 20000": png(20_000, 20_000, b"\0" * 1000),
    "0 x 0": png(0, 0, b""),
    "too many pixels": png(8000, 8000, b"\0" * (3 * 8000 + 1) * 8000),
    "animated webp": encoded(picture(), "WEBP", **ANIMATED),
}


OFTEN = ("alpha", "cmyk")  # the others when there is time


@pytest.mark.parametrize(
    "content",
    [pytest.param(GOOD[name], id=name, marks=() if name in OFTEN else pytest.mark.slow) for name in GOOD],
)
def test_pictures_are_read_as_files_are(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "picture").write_bytes(content)
    given = decode_image(content, 5, 7, "fill")
    np.testing.assert_array_equal(given, read_image(tmp_path / "picture"))
    assert given.shape == (1, 5, 7, 3)


@pytest.mark.parametrize(("rule", "size"), [("fill", (16, 12)), ("stretch", (3, 9))])
def test_an_image_is_resized_as_the_runtime_does_it(rule: ResizeRule, size: tuple[int, int]) -> None:
    given = decode_image(GOOD["alpha"], *size, rule)
    alone = resize(np.asarray(picture())[None], *size, rule)
    np.testing.assert_array_equal(resize(given, *size, rule), alone)  # to the bit
    assert given.shape == (1, *size, 3)


@pytest.mark.parametrize("size", [(3, 9), (16, 2)])
def test_what_an_image_encoder_sees_comes_beside_the_image(size: tuple[int, int]) -> None:
    given = decode_image(GOOD["alpha"], *size, "fill", square=(7, 5))
    whole = np.asarray(picture())[None]
    np.testing.assert_array_equal(given[:1, : size[0], : size[1]], resize_image(whole, *size, "fill"))
    np.testing.assert_array_equal(given[1:, :5, :5], middle_square(whole, 7, 5))
    assert given.shape == (2, max(size[0], 5), max(size[1], 5), 3)


@pytest.mark.slow
def test_what_is_no_picture_is_refused() -> None:
    def refusal(content: bytes) -> str:
        try:
            decode_image(content, 5, 7, "fill")
        except InputError as error:
            return str(error)
        return "none"

    with ThreadPoolExecutor(2) as pool:
        refusals = dict(zip(BAD, pool.map(refusal, BAD.values()), strict=True))
    assert {name: refused for name, refused in refusals.items() if refused != images.REFUSED} == {}


def test_the_process_that_decodes_can_open_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Were a picture to make it do so."""
    secret = tmp_path / "secret"
    secret.write_text("the server's")
    module = tmp_path / "opens.py"
    module.write_text(
        "import io, sys, av\n"
        "from adacache_serve.orders import sandbox\n"
        "def opened(*_, **__):\n"
        f"    try: open({str(secret)!r})\n"
        "    except OSError as error: sys.exit(24 if error.errno == 24 else 1)\n"
        "    sys.exit(99)\n"
        "limit = sandbox.resource.setrlimit\n"
        "def limited(*of): limit(*of); av.Packet = opened\n"
        "sandbox.resource.setrlimit = limited\n"
        "sandbox.main('png', 5, 7, 'fill')\n"
    )
    done = subprocess.run(
        [sys.executable, str(module)], input=GOOD["grey"], stdout=subprocess.DEVNULL, env=images._environment(),
        check=False,
    )  # fmt: skip
    assert done.returncode == 24  # too many open files
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    assert not any("SECRET" in name for name in images._environment())


def test_a_picture_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "SECONDS", 0.05)
    with pytest.raises(InputError, match=r"not decoded within 0.05 seconds"):
        decode_image(GOOD["grey"], 5, 7, "fill")


def accepted(answer: httpx.Response) -> str:
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@pytest.mark.parametrize(("way", "at"), [("base64", 0), ("url", -1), ("form", 0)])
def test_the_video_begins_with_the_picture(
    client: httpx.Client, bundle: Path, tmp_path: Path, way: str, at: int
) -> None:
    content = encoded(picture())
    order = {"prompt": "a boat", "seed": 5, "policy": "interval-2", "image_at": at}
    text = base64.b64encode(content).decode()
    if way == "form":
        fields = {name: (None, str(value)) for name, value in order.items()}
        answer = client.post("/v1/videos", files={**fields, "input_reference": ("a.png", content, "image/png")})
    else:
        image = text if way == "base64" else f"data:image/png;base64,{text}"
        answer = client.post("/v1/videos", json={**order, "image": image})
    video = ended(client, accepted(answer))
    assert (video["status"], video["error"]) == ("completed", None)
    assert "image" not in video["request"]

    frame = np.asarray(picture())
    policy = PRESETS["interval-2"]
    asked = Request(prompts=("a boat",), seed=5, policy=policy, images=(frame,), image_at=(at,))
    alone = Pipeline(open_bundle(bundle), FakeBackend(functions())).generate(asked)
    kept = resize_to_fill(frame[None], *alone.latents.shape[3:])
    np.testing.assert_array_equal(alone.latents[0][:, at], kept[:, 0])  # kept, bit for bit
    write_video(tmp_path / "alone.mp4", to_pixels(alone.latents[0]), 24.0)
    assert client.get(video["content"]).content == (tmp_path / "alone.mp4").read_bytes()


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ({"image_at": 0}, "image_at"),
        ({"image": GOOD["grey"], "image_at": 4}, "image_at"),
        ({"image": GOOD["grey"], "image_at": -5}, "image_at"),
        ({"image": BAD["playlist"]}, "image"),
        ({"image": GOOD["grey"], "frames": 1}, "image"),
    ],
)
def test_pictures_that_are_not_possible_are_named(client: httpx.Client, order: dict[str, Any], field: str) -> None:
    if "image" in order:
        order = {**order, "image": base64.b64encode(order["image"]).decode()}
    refused = client.post("/v1/videos", json={"prompt": "a", **order})
    assert (refused.status_code, refused.json()["field"]) == (422, field)


def test_a_large_picture_fits_into_json(client: httpx.Client) -> None:
    content = encoded(picture(size=(600, 600)))
    assert len(content) > 10**6
    order = {"image": base64.b64encode(content).decode(), "prompt": 'an "image": "a\\"'}
    answer = client.post("/v1/videos", json=order)
    assert answer.status_code == 202, answer.text
    assert answer.json()["request"]["prompt"] == order["prompt"]


def test_statuses_are_told_while_many_pictures_are_read(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few are read at once, few wait, and none of those that wait has a thread."""
    now, most, gate = [0], [0], threading.Event()

    def slow(*_: object) -> np.ndarray:
        now[0] += 1
        most[0] = max(most[0], now[0])
        assert gate.wait(HANG_SECONDS)
        now[0] -= 1
        return np.asarray(picture())[None]

    monkeypatch.setattr(jobs, "image_of_order", slow)
    order = {"prompt": "a", "image": base64.b64encode(GOOD["grey"]).decode()}
    with ThreadPoolExecutor(60) as pool, httpx.Client(base_url=client.base_url, timeout=HANG_SECONDS) as other:
        asked = [pool.submit(client.post, "/v1/videos", json=order) for _ in range(60)]
        until(lambda: now[0] == 2 and any(answer.done() for answer in asked))
        assert other.get("/v1/videos").status_code == 200
        gate.set()
        statuses = [answer.result().status_code for answer in asked]
    assert most[0] == 2
    assert set(statuses) == {202, 429}


def test_a_client_that_hangs_up_stops_the_process_that_decodes(client: httpx.Client) -> None:
    before = newest(client)
    with held() as started:
        with post(client, prompt="a", image=base64.b64encode(GOOD["grey"]).decode()):
            until(lambda: started.running() == 1)
            assert client.get("/healthz").text == "ok"
        until(lambda: started.running() == 0)
    assert started[0].returncode == -signal.SIGKILL
    assert newest(client) == before


def test_what_is_stored_has_the_size_of_the_video(tmp_path: Path, bundle: Path) -> None:
    made = service(Settings(tmp_path / "data"), bundle)
    made.dispatcher.paused = True
    text = base64.b64encode(encoded(picture(size=(64, 48)))).decode()
    job, _ = made.submit(CreateVideo(prompt="a", image=text), ANONYMOUS)
    (stored,) = (tmp_path / "data" / "images").iterdir()
    assert (stored.name, job.image) == (f"{job.id}.npy", stored.name)
    alone = resize_to_fill(np.asarray(picture(size=(64, 48)))[None], 2, 5)
    np.testing.assert_array_equal(resize_to_fill(np.load(stored), 2, 5), alone)
    assert np.load(stored).shape == (1, 2, 5, 3)
    made.stop()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_an_image_that_does_not_fit_on_the_disk_leaves_nothing(client: httpx.Client, data: Path, number: int) -> None:
    order = {"prompt": "a", "image": base64.b64encode(GOOD["grey"]).decode()}
    known = newest(client)
    with full_disk(data / "images", number) as tried:
        refused = client.post("/v1/videos", json=order)
    assert (refused.status_code, refused.headers["Content-Type"]) == (507, "application/problem+json")
    assert int(refused.headers["Retry-After"]) > 0
    assert "disk is full" in refused.json()["detail"]
    assert len(tried) == 1
    assert not tried[0].exists()
    assert newest(client) == known
    assert client.post("/v1/videos", json=order).status_code == 202


@pytest.mark.slow
def test_nothing_is_left_of_pictures(client: httpx.Client, data: Path) -> None:
    order = {"prompt": "a", "image": base64.b64encode(GOOD["grey"]).decode()}
    for _ in range(3):
        ended(client, accepted(client.post("/v1/videos", json=order)))
    until(lambda: not client.get("/v1/videos", params={"status": "queued"}).json()["data"])
    until(lambda: not list((data / "images").iterdir()))
