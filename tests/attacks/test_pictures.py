"""Pictures that are too large, broken, or no pictures at all.

A picture is decoded in a process of its own, which a test starts once for hundreds of pictures. That the server starts
one for each, bounds their number, kills those that nobody waits for, and answers meanwhile, is tested over HTTP.
"""

import base64
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image as Pillow

from adacache_engines.errors import InputError
from adacache_runtime.media import pictures as resizing
from adacache_serve.http.app import DECODERS, create_app
from adacache_serve.http.videos import MOST_IMAGES
from adacache_serve.orders import images
from adacache_serve.orders.images import CODECS, decode_image
from adacache_serve.settings import Settings
from tests.helpers.hostile_pictures import jpegs, others, pngs, webps
from tests.helpers.hostile_pictures.pictures import encoded, picture
from tests.helpers.serving import fake_server
from tests.helpers.serving.fake_server import served, service, write_model
from tests.helpers.serving.held_images import held, post
from tests.helpers.serving.http_jobs import create, ended
from tests.helpers.waiting import HANG_SECONDS, until

Tries = Callable[[Iterable[Any]], Iterator[Any]]
VIDEOS = "/v1/videos"
GOOD = encoded(picture(), "PNG")
# the process that decodes pictures, but for many of them: a line of JSON for each, then its content
MANY = """
import json, sys
from adacache_serve.orders import sandbox

sandbox.CPU_SECONDS = 300
sandbox.resize_image(sandbox.decoded(sandbox.PIXEL, "png"), 2, 2, "fill")
sandbox.set_limits(8 * 8 * 3)
while line := sys.stdin.buffer.readline():
    codec, nbytes = json.loads(line)
    try:
        image = sandbox.decoded(sys.stdin.buffer.read(nbytes), codec)
        assert sandbox.resize_image(image, 8, 8, "fill").shape == (1, 8, 8, 3)
        print("decoded", flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""
OUTCOMES = ("decoded", "ArgumentError", "InvalidDataError", "PatchWelcomeError", "ExternalError", "ValueError")


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def apps() -> list[FastAPI]:
    """The application that is served, once the client below is there."""
    return []


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, data: Path, apps: list[FastAPI]) -> Iterator[httpx.Client]:
    def create(*arguments: Any, **named: Any) -> FastAPI:
        apps.append(create_app(*arguments, **named))
        return apps[0]

    folder = tmp_path_factory.mktemp("models") / "fake"
    write_model(folder, conditioned=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_server, "create_app", create)
        with served(service(Settings(data), folder)) as client:
            yield client


@pytest.mark.parametrize(
    "kind", [pngs.pngs, jpegs.jpegs, webps.webps, others.polyglots, lambda: others.mutated(1200)], ids="pjwom"
)
def test_no_picture_crashes_the_process_that_decodes_it(kind: Callable[[], Any], tries: Tries) -> None:
    """Each is decoded or refused, and the same process goes on with the next, within the same limits of memory."""
    given = [(name, content, codec(content)) for name, content in tries(kind())]
    lines = [json.dumps([codec, len(content)]).encode() + b"\n" + content for _, content, codec in given]
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        input=b"".join(lines),
        capture_output=True,
        env=images._environment(),
        check=False,
    )
    found = done.stdout.decode().splitlines()
    assert len(found) == len(given), (given[len(found)][0], done.returncode, done.stderr[-300:])
    assert {name: error for (name, _, _), error in zip(given, found, strict=True) if error not in OUTCOMES} == {}
    assert Counter(found)["decoded"] < len(found)


def codec(content: bytes) -> str:
    return next(name for name, begins in CODECS.items() if begins.match(content))


def test_what_is_no_picture_is_refused_whatever_it_is_called(client: httpx.Client, tries: Tries) -> None:
    """No process is started for it, so that nothing but the first bytes was ever looked at."""
    with held() as started:
        for number, (name, content) in enumerate(tries(others.of_other_kinds())):
            file = (f"picture{number}.png", content, ("image/png", "image/jpeg", "image/webp")[number % 3])
            field = ("image", "input_reference")[number % 2]
            refused = client.post(VIDEOS, files={"prompt": (None, "a"), field: file})
            assert (refused.status_code, refused.json()["field"]) == (422, "image"), name
        for _, content in tries(others.of_other_kinds()):
            for way in (text(content), f"data:image/png;base64,{text(content)}"):
                refused = client.post(VIDEOS, json={"prompt": "a", "image": way})
                assert (refused.status_code, refused.json()["field"]) == (422, "image")
        assert started == []


def test_texts_that_are_no_base64_are_refused(client: httpx.Client, tries: Tries) -> None:
    whole = text(GOOD)
    texts = [
        *("", "=", "====", "!", "\0", "\ud7ff", "é", " ", "\n", "data:", "data:,", "data:;base64,", "data:image/png,x"),
        *(f"data:image/png;{charset}base64,%%%" for charset in ("", "charset=utf-7;", "x" * 100_000 + ";")),
        *(f"{before}{whole}" for before in (" ", "\n", "\ufeff", "data:image/png;base64", "data:image/png;hex,", "=")),
        *(f"{whole}{after}" for after in ("A", "\0", "#", ",", "\n")),
        *(whole.replace("A", other) for other in ("-", "_", "A\r\n", "%41", "\u0391")),
        *("http://127.0.0.1/a.png", "file:///etc/passwd", "/etc/passwd", "data:text/html;base64,PGh0bWw+"),
        *("blob:1", "ftp://127.0.0.1/a", "javascript:alert(1)", "data:image/svg+xml;base64,PHN2Zy8+"),
        "A" * 10**6,
        "data:" * 10**5,
    ]
    wrong: list[Any] = [1, 1.5, True, [], {}, [whole], {"url": whole}, 10**30]
    with held() as started:
        for value in tries([*texts, *wrong]):
            refused = client.post(VIDEOS, json={"prompt": "a", "image": value})
            assert refused.status_code == 422, (str(value)[:40], refused.text)
            assert refused.json()["field"].startswith("image"), str(value)[:40]
        assert started == []


def test_forms_that_contradict_themselves_are_refused(client: httpx.Client, tries: Tries) -> None:
    def part(head: str, content: bytes = b"GIF89a") -> bytes:
        return f"--x\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"

    end, prompt = b"--x--\r\n", part('name="prompt"', b"a")
    names = [
        *('name="image"; filename=""', 'name="image"; filename="../../etc/passwd"', 'name="image"; filename="a\0.png"'),
        *("name=image; filename=a", "name=\"image\"; filename*=utf-8''%00%ff", 'name="image"; filename="' + "a" * 5000),
        *('name="prompt"; filename="a.png"', 'filename="a.png"', 'name=""; filename="a"', 'name="image"', "", ";;;"),
        *('name="image[]"; filename="a"', 'name="image"; filename="a"; filename="b"', 'name="IMAGE"; filename="a"'),
    ]
    bodies = [
        *(prompt + part(name) + end for name in names),
        *(prompt + part(name) for name in names),
        prompt + 2 * part('name="image"; filename="a"') + end,
        prompt + part('name="image"; filename="a"') + part('name="input_reference"; filename="a"') + end,
        prompt + part('name="image"; filename="a"\r\nContent-Type: multipart/mixed; boundary=x', prompt + end) + end,
        prompt + part('name="image"; filename="a"\r\nContent-Transfer-Encoding: base64', text(GOOD).encode()) + end,
        prompt + part('name="image"; filename="a"' + "\r\nX: y" * 5000) + end,
        prompt + part('name="image"; filename="a"\r\n' + "X" * 100_000 + ": y") + end,
        prompt * 1000 + end,
        part('name="image"; filename="a"') * 1000 + end,
        b"--x" * 10**5,
        *(b"", b"--", end, b"--x\r\n", b"--x\r\n\r\n", b"\0" * 1000, prompt[:-4], prompt + end[:-4]),
    ]
    with held() as started:
        for body in tries(bodies):
            for boundary in ("x", '"x"', "", "y" * 1000):
                kind = f"multipart/form-data; boundary={boundary}"
                refused = client.post(VIDEOS, content=body, headers={"Content-Type": kind})
                assert 400 <= refused.status_code < 500, (body[:80], boundary, refused.text)
        assert started == []


def test_the_server_answers_while_ten_pictures_are_decoded(
    client: httpx.Client, apps: list[FastAPI], tries: Tries
) -> None:
    """Two processes at once are the bound of the memory; others wait without a thread, and too many are refused."""

    def waiting() -> int:
        return int(apps[0].state.decoding.statistics().tasks_waiting)

    with held() as started, ExitStack() as stack:
        for _ in tries(range(10)):
            stack.enter_context(post(client, prompt="a", image=text(GOOD)))
        until(lambda: started.running() == DECODERS)
        assert client.get("/healthz").text == "ok"
        assert client.get("/readyz").status_code == 200
        assert ended(client, create(client))["status"] == "completed"
        for _ in tries(range(MOST_IMAGES + DECODERS - 10)):
            stack.enter_context(post(client, prompt="a", image=text(GOOD)))
        order = {"prompt": "a", "image": text(GOOD)}
        with httpx.Client(base_url=client.base_url, timeout=HANG_SECONDS) as other:
            until(lambda: waiting() == MOST_IMAGES)
            refused = other.post(VIDEOS, json=order)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 0
        assert (started.running(), started.most) == (DECODERS, DECODERS)
        newest = last(client)
    until(lambda: started.running() == 0 and waiting() == 0)
    assert started.most == DECODERS
    assert {process.returncode for process in started} == {-signal.SIGKILL}
    assert last(client) == newest
    assert ended(client, create(client, image=text(GOOD)))["status"] == "completed"


def last(client: httpx.Client) -> str:
    return str(client.get(VIDEOS, params={"limit": 1}).json()["last_id"])


def test_the_server_itself_does_no_work_at_a_large_picture(
    client: httpx.Client, data: Path, monkeypatch: pytest.MonkeyPatch, tries: Tries
) -> None:
    """Its picture is decoded and resized elsewhere, and stored as small as it is shown."""

    def refuse(*_: object) -> None:
        raise AssertionError("the server resizes a picture")

    for name in ("resize", "resize_image", "resize_to_fill", "stretch", "_filled", "_stretched"):
        monkeypatch.setattr(resizing, name, refuse)
    for width, height in tries([(8192, 2048), (8192, 4096)]):
        content = encoded(Pillow.new("RGB", (width, height)), "PNG")
        assert len(content) < 100_000
        job = ended(client, create(client, image=text(content)))
        assert (job["status"], job["error"]) == ("completed", None)
    until(lambda: not list((data / "images").iterdir()))


def test_a_bomb_is_refused_where_its_memory_ends(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, tries: Tries
) -> None:
    """It says to be 16 x 16 pixels, and contains a gigabyte beside them."""
    monkeypatch.setattr(images, "PROGRAM", limited("NBYTES", 2**29))
    (bomb,) = tries([dict(pngs.bombs(1024))["a colour profile"]])
    refused = client.post(VIDEOS, files={"prompt": (None, "a"), "image": ("a.png", bomb, "image/png")})
    assert (refused.status_code, refused.json()["field"]) == (422, "image")
    assert client.post(VIDEOS, json={"prompt": "a", "image": text(GOOD)}).status_code == 202


def limited(name: str, value: int) -> tuple[str, ...]:
    """Return the program that decodes an image, with another limit."""
    code = f"sandbox.{name} = {value}; sandbox.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])"
    return (sys.executable, "-c", f"import sys; from adacache_serve.orders import sandbox; {code}")


def test_a_picture_that_paints_itself_for_minutes_is_stopped(monkeypatch: pytest.MonkeyPatch, tries: Tries) -> None:
    """The kernel counts the time of the processor, so that a busy machine refuses no others."""
    monkeypatch.setattr(images, "PROGRAM", limited("CPU_SECONDS", 1))
    (content,) = tries([jpegs.many_scans(4096, 4096, 100_000)])
    with pytest.raises(InputError, match="the image cannot be decoded"):
        decode_image(content, 8, 8, "fill")
    assert np.any(decode_image(GOOD, 8, 8, "fill"))


def test_pictures_of_one_row_or_column_are_resized_or_refused(tries: Tries) -> None:
    """To fill a video, a column of 2048 pixels would have to become millions of rows."""
    for width, height in tries([(1, 2048), (2048, 1)]):
        content = encoded(Pillow.new("RGB", (width, height)), "PNG")
        try:
            given = decode_image(content, 720, 1280, "fill")
        except InputError as error:
            assert "takes too much memory at the video's size, 1280x720" in str(error)
        else:
            assert given.shape == (1, 720, 1280, 3)
