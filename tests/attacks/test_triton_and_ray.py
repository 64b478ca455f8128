"""Hostile requests to the entries for Triton and Ray Serve, and clients that cancel."""

import json
import queue
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.files import open_bundle
from adacache_export.commands.export import main
from adacache_export.writing.triton_repository import config_pbtxt
from adacache_serve.orders import check as checking
from adacache_serve.triton import model as triton_model
from adacache_serve.triton.config import INPUTS
from adacache_serve.triton.model import TritonPythonModel
from tests.helpers.serving import fake_server
from tests.helpers.serving.fake_server import write_model
from tests.helpers.serving.triton_server import Answer, Asking, Client, triton
from tests.helpers.waiting import HANG_SECONDS, until

Tries = Callable[[Iterable[Any]], Iterator[Any]]
LINE = 1000  # characters that a person reads of an error


# Triton's Python backend, in this process


@dataclass
class Sender:
    """Triton's sender of responses to one request, which dies when it is used after its last one."""

    cancelled: Any = False
    answers: "queue.Queue[tuple[Any, str | None]]" = field(default_factory=queue.Queue)
    ended: bool = False

    def send(self, response: Any, flags: int) -> None:
        assert not self.ended, "Triton dies"
        self.ended = flags == 1
        self.answers.put((response.outputs, response.error))

    def is_cancelled(self) -> bool:
        if isinstance(self.cancelled, Exception):
            raise self.cancelled
        return bool(self.cancelled)

    def last(self) -> tuple[dict[str, Any], str | None]:
        """Return the outputs and the error of the last response."""
        while True:
            outputs, error = self.answers.get(timeout=HANG_SECONDS)
            if error or "video" in outputs:
                return outputs, error


@dataclass
class Request:
    """A request of Triton's with these arrays by name."""

    arrays: dict[str, Any]
    sender: Any = field(default_factory=Sender)

    def get_response_sender(self) -> Any:
        return self.sender


class Tensor:
    """A tensor of Triton's; one that holds an error cannot be read."""

    def __init__(self, name: str, array: Any) -> None:
        self.name, self._array = name, array

    def as_numpy(self) -> Any:
        if isinstance(self._array, Exception):
            raise self._array
        return self._array


def backend() -> ModuleType:
    made: Any = ModuleType("triton_python_backend_utils")
    made.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    made.Tensor = Tensor
    Tensor.from_dlpack = staticmethod(Tensor)  # type: ignore[attr-defined]
    codes = {name: name for name in ("INTERNAL", "INVALID_ARG", "UNAVAILABLE", "CANCELLED")}
    made.TritonError = type(
        "TritonError", (), {**codes, "__call__": None, "__new__": lambda _, text, code: f"{code}: {text}"}
    )

    def response(output_tensors: Iterable[Tensor] = (), error: str | None = None) -> Any:
        return SimpleNamespace(outputs={one.name: one.as_numpy() for one in output_tensors}, error=error)

    made.InferenceResponse = response
    made.get_input_tensor_by_name = lambda request, name: (
        Tensor(name, request.arrays[name]) if name in request.arrays else None
    )
    return made


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "fake.adacache"
    write_model(folder, conditioned=True)
    return folder


class Fake(TritonPythonModel):
    open_models = staticmethod(fake_server.open_models)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[TritonPythonModel]:
    version = tmp_path_factory.mktemp("repository") / "1"
    version.mkdir()
    (version / "bundle").symlink_to(bundle)
    config = {"parameters": {"in_flight": {"string_value": "2"}}}
    made = Fake()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", backend())
        arguments = {"model_config": json.dumps(config), "model_repository": str(version.parent), "model_version": "1"}
        made.initialize({**arguments, "model_instance_kind": "CPU", "model_instance_device_id": "0"})
        yield made
        made.finalize()


def asked(model: TritonPythonModel, **arrays: Any) -> tuple[dict[str, Any], str | None]:
    """Return the last response to a request."""
    request = Request(arrays)
    model.execute([request])
    return request.sender.last()


def texts(*values: Any) -> Any:
    return np.array([*values, None], np.object_)[:-1]


GOOD = {"prompt": texts(b"boat"), "steps": np.array([2])}


def hostile_arrays() -> Iterator[dict[str, Any]]:
    """Arrays that are no order."""
    shapes = (np.zeros(0), np.zeros(2), np.zeros((0, 3)), np.zeros((2, 2)), np.zeros((1,) * 40)[..., :0])
    kinds = (np.array(["x"]), np.array([1j]), np.array(["2020"], "M8[D]"), np.zeros(1, [("a", "f4")]), texts(None))
    kinds += (
        texts({}),
        texts([1]),
        texts("text"),
        np.array([True]),
        MemoryError("x"),
        ValueError("\x1b[2J" + "x" * 10**5),
    )
    for name in INPUTS:
        for array in (*shapes, *kinds):
            yield {**GOOD, name: array}
    for number in (np.nan, np.inf, -np.inf, 1e308, -1.0):
        yield from ({**GOOD, name: np.array([number])} for name in ("seconds", "guidance", "guidance_2"))
    for number in (-(2**63), 2**63 - 1, -1, 10**6):
        names = ("frames", "steps", "image_at", "priority") if number != -1 else ("frames", "steps")
        yield from ({**GOOD, name: np.array([number])} for name in names)
    for text in (b"", b"\xff", b"\xed\xa0\x80", b"\0", b"a\0b", b" " * 10**6, b"x" * 10**7, b"\xf0\x9f"):
        names = ("prompt", "size", "aspect", "sampler", "policy", "image")
        yield from ({**GOOD, name: texts(text)} for name in names)
    yield {**GOOD, "negative_prompt": texts(b"\xff")}
    yield {**GOOD, "policy": texts(b"/etc/passwd")}
    yield {**GOOD, "policy": texts(b"os:system")}
    yield {**GOOD, "image": texts(bytes(40 * 2**20))}
    yield from (
        {**GOOD, "image": texts(text)} for text in (b"#EXTM3U\n", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff")
    )
    yield {}


def test_each_hostile_request_gets_an_error_of_its_own(model: TritonPythonModel, tries: Tries) -> None:
    accepted = []
    for arrays in tries(hostile_arrays()):
        outputs, error = asked(model, **arrays)
        if error is None:
            accepted.append(arrays)
        else:
            assert "video" not in outputs
            assert len(error) < LINE, error[:LINE]
            assert error.isprintable(), error
            assert not error.startswith("INTERNAL"), error
    assert accepted == []
    outputs, error = asked(model, **GOOD)
    assert error is None
    assert outputs["video"].size
    until(lambda: not model._pending)
    assert [path.name for path in Path(model._files.name).iterdir()] == ["workers.lock"]


def test_an_unexpected_error_is_that_of_its_request(
    model: TritonPythonModel, monkeypatch: pytest.MonkeyPatch, tries: Tries
) -> None:
    """Those that came with it in one call go on."""
    for raised in tries((RuntimeError("a bug"), MemoryError(), OSError(24, "Too many open files"), KeyError("x"))):

        def check(order: Any, *arguments: Any, raised: Exception = raised, **options: Any) -> Any:
            if order.prompt == "bug":
                raise raised
            return checking.check(order, *arguments, **options)

        requests = [Request({**GOOD, "prompt": texts(text)}) for text in (b"boat", b"bug", b"bird")]
        with monkeypatch.context() as patch:
            patch.setattr(triton_model, "check", check)
            model.execute(requests)
        answers = [request.sender.last() for request in requests]
        assert [error is None for _, error in answers] == [True, False, True]
        assert "the request cannot be checked" in str(answers[1][1])


def test_a_sender_that_fails_takes_nobody_with_it(model: TritonPythonModel, tries: Tries) -> None:
    class Broken(Sender):
        def send(self, response: Any, flags: int) -> None:
            self.answers.put((response.outputs, response.error))
            raise RuntimeError("no shared memory is left")

    for arrays in tries((GOOD, {}, {**GOOD, "prompt": texts(b"break")}, {**GOOD, "steps": np.array([0])})):
        broken = Request(arrays, Broken(cancelled=RuntimeError("gone")))
        good = Request(GOOD)
        model.execute([broken, good])
        assert good.sender.last()[1] is None
        assert broken.sender.answers.get(timeout=HANG_SECONDS)
    until(lambda: not model._pending)


def test_many_at_once_and_some_are_cancelled(model: TritonPythonModel, tries: Tries) -> None:
    """More threads than there are places; every request has one last response, and every place comes back."""
    requests = [
        Request(
            {
                "prompt": texts(b"slow" if number % 3 == 0 else b"boat"),
                "steps": np.array([300 if number % 3 == 0 else 2]),
            }
        )
        for number in tries(range(24))
    ]
    threads = [threading.Thread(target=model.execute, args=([request],)) for request in requests]
    for request in requests[::3]:
        request.sender.cancelled = True
    for thread in threads:
        thread.start()
    answers = [request.sender.last() for request in requests]
    for thread in threads:
        thread.join()
    assert [error for _, error in answers[::3]] == ["CANCELLED: the request was cancelled"] * 8
    assert [error for number, (_, error) in enumerate(answers) if number % 3] == [None] * 16
    until(lambda: not model._pending)
    assert asked(model, **GOOD)[1] is None


def test_the_worker_dies_many_times(model: TritonPythonModel, tries: Tries) -> None:
    for _ in tries(range(2)):
        beside = Request({"prompt": texts(b"slow"), "steps": np.array([900])})
        model.execute([beside])
        _, error = asked(model, prompt=texts(b"die"))
        assert "send the request again" in str(error)
        assert "send the request again" in str(beside.sender.last()[1])
        until(lambda: asked(model, **GOOD)[1] is None)
    until(lambda: not model._pending)
    assert [path.name for path in Path(model._files.name).iterdir()] == ["workers.lock"]


# the real Triton server

SERVED = """
from tests.helpers.serving import fake_server
from adacache_serve.triton import model as triton


class TritonPythonModel(triton.TritonPythonModel):
    open_models = staticmethod(fake_server.open_models)
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("triton")
    assert main([str(bundle), "--triton-repository", str(folder / "repository")]) == 0
    version = folder / "repository" / "fake" / "1"
    (version / "model.py").write_text(SERVED)
    config = config_pbtxt(open_bundle(bundle).manifest, ["cpu"])
    # dimensions that their owner loosened, so that shapes come through to the model
    (version.parent / "config.pbtxt").write_text(config.replace("dims: [ 1 ], optional", "dims: [ -1 ], optional"))
    with triton(folder / "repository", folder, "fake") as made:
        yield made


class Raw(Asking):
    """A request with tensors as they are: type, shape and bytes by name."""

    def __init__(self, client: Client, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
        import tritonclient.grpc as grpc

        self._client = grpc.InferenceServerClient(client._address)
        self._responses: queue.Queue = queue.Queue()
        self._client.start_stream(lambda result, error: self._responses.put((result, error)))
        inputs = []
        for name, (kind, shape, content) in tensors.items():
            tensor = grpc.InferInput(name, shape, kind)
            tensor._raw_content = content
            inputs.append(tensor)
        self.answer = Answer()
        self._client.async_stream_infer(client._name, inputs, enable_empty_final_response=True)


def raw_text(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def hostile_tensors() -> Iterator[dict[str, tuple[str, list[int], bytes]]]:
    prompt = ("BYTES", [1], raw_text(b"boat"))
    yield from ({"prompt": prompt, name: ("FP32", [1], bytes(4))} for name in ("steps", "seconds", "policy"))
    yield from (
        {"prompt": prompt, "steps": ("INT64", shape, bytes(8 * count))} for shape, count in (([0], 0), ([3], 3))
    )
    yield {"prompt": prompt, "steps": ("INT64", [2, 2], bytes(32))}
    yield {"prompt": prompt, "steps": ("INT64", [1], b"")}
    yield {"prompt": prompt, "steps": ("INT64", [1], bytes(800))}
    yield {"prompt": prompt, "steps": ("INT64", [-1], bytes(8))}
    yield {"prompt": prompt, "policy": ("BYTES", [2], raw_text(b"never", b"never"))}
    yield {"prompt": prompt, "policy": ("BYTES", [0], b"")}
    yield from (
        {"prompt": ("BYTES", [1], content)}
        for content in (
            b"",
            b"\xff",
            struct.pack("<I", 2**32 - 1),
            struct.pack("<I", 9) + b"boat",
            raw_text(b"a", b"b"),
        )
    )
    yield {"prompt": ("BYTES", [1], raw_text(b"\xff\xfe"))}
    yield {"prompt": ("BYTES", [1], raw_text(b"x" * 10**6))}
    yield {"steps": ("INT64", [1], struct.pack("<q", 2))}
    yield {"prompt": prompt, "unknown": ("INT64", [1], bytes(8))}
    for number in (np.nan, np.inf, 1e308):
        yield {"prompt": prompt, "seconds": ("FP64", [1], struct.pack("<d", number))}


def test_hostile_tensors_over_the_wire(client: Client, tries: Tries) -> None:
    for tensors in tries(hostile_tensors()):
        answer = Raw(client, tensors).whole()
        assert answer.error, tensors
        assert answer.video is None
    assert client.ask(prompt="boat", steps=2).whole().video


def test_clients_that_cancel_or_vanish(client: Client, tries: Tries) -> None:
    for seen in tries((0, 1, 3) * 3):
        asking = client.ask(prompt="slow", steps=900)
        while len(asking.answer.progress) < seen:
            asking.next()
        asking.cancel()
    both = [client.ask(prompt="boat", steps=2, seed=seed) for seed in range(12)]
    assert all(asking.whole().video for asking in both)
    assert client.get("/v2/models/fake/versions/1/ready") == 200


# Ray Serve's HTTP API, in this process


class Stream:
    """Stream of a replica about a job: the job's name, and then the messages that a test chose."""

    def __init__(self, sent: Iterable[Any] = ()) -> None:
        self.sent, self.cancelled = iter(sent), False

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Any:
        for one in self.sent:
            if isinstance(one, Exception):
                raise one
            return one
        raise StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture(scope="module")
def streams() -> list[Stream]:
    """Streams of the jobs that are created next; a job without one gets an empty one."""
    return []


@pytest.fixture(scope="module")
def api(bundle: Path, streams: list[Stream]) -> Iterator[Any]:
    pytest.importorskip("ray", reason="ray[serve] is not installed")
    from starlette.testclient import TestClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        from ray import serve

        from tools.examples.ray_serve import Videos
        from tools.examples.ray_serve import api as application

    class Replicas:
        """A handle of the replicas."""

        def options(self, **_options: Any) -> "Replicas":
            return self

        @property
        def make(self) -> Any:
            return SimpleNamespace(remote=lambda *_: streams.pop() if streams else Stream())

    written: Any = Videos.func_or_class.__mro__[1]  # type: ignore[attr-defined] # below Ray's wrapper
    served = SimpleNamespace(servable_object=written(str(bundle), Replicas()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "get_replica_context", lambda: served)
        with TestClient(application, raise_server_exceptions=False) as made:
            yield made


def hostile_bodies() -> Iterator[bytes]:
    yield from (b"", b"\xff", b"null", b"[]", b'"x"', b"NaN", b"9" * 10**5, b"[" * 10**5, b'{"a":' * 10**5, b"{}")
    values = ["NaN", "Infinity", "-Infinity", "1e400", "9" * 4000, "[]", "{}", '"\\ud800"', '["\\ud800"]', '"\\u0000"']
    values += ['"' + "x" * 10**6 + '"', "[" * 5000 + "]" * 5000, "true", '{"\\ud800": NaN}']
    fields = ("prompt", "negative_prompt", "size", "seconds", "frames", "seed", "steps", "guidance", "policy", "image")
    for name in (*fields, "image_at", "unknown", "\\ud800", "y" * 10**5):
        yield from (f'{{"prompt": "boat", "{name}": {value}}}'.encode() for value in values)


def test_hostile_orders_over_http(api: Any, tries: Tries) -> None:
    headers = {"content-type": "application/json"}
    for body in tries(hostile_bodies()):
        answer = api.post("/v1/videos", content=body, headers=headers)
        assert answer.status_code in (400, 422), body[:200]
        assert len(answer.content) < LINE
        json.loads(answer.content, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    for name in tries(("x", "%00", "%ff", "%0a%1b", "x" * 5000, "..%2f..%2fetc%2fpasswd", "%ed%a0%80")):
        for call in (api.get, api.delete):
            assert call(f"/v1/videos/{name}").status_code == 404
            assert len(call(f"/v1/videos/{name}").content) < LINE
        assert api.get(f"/v1/videos/{name}/content").status_code == 404
    assert api.post("/v1/videos", json={"prompt": "boat"}).status_code == 202


def test_what_a_replica_sends_is_that_of_its_job(api: Any, streams: list[Stream], tries: Tries) -> None:
    """A replica that fails, or sends nothing more, leaves the others."""
    good: list[Any] = ["replica", {"call": 1}, ("video/mp4", b"video")]
    failing = (RuntimeError("a bug"), MemoryError(), KeyError("x"), ValueError("\ud800"))
    for last in tries(failing):
        streams += [Stream(good), Stream(["replica", last])]
        failed, made = (api.post("/v1/videos", json={"prompt": "boat"}).json()["id"] for _ in range(2))
        job = until(lambda name=failed: (found := api.get(f"/v1/videos/{name}").json())["status"] == "failed" and found)
        assert job["error"]
        assert until(lambda name=made: api.get(f"/v1/videos/{name}").json()["status"] == "completed")
        assert api.get(f"/v1/videos/{made}/content").content == b"video"
        assert api.get(f"/v1/videos/{failed}/content").status_code == 409


def test_more_jobs_than_are_kept(api: Any, monkeypatch: pytest.MonkeyPatch, tries: Tries) -> None:
    """A deployment drops no job that waits; jobs that have ended make room for new ones."""
    from tools.examples import ray_serve

    monkeypatch.setattr(ray_serve, "KEPT", 20)
    names: list[str] = []
    for _ in tries(range(40)):
        answer = api.post("/v1/videos", json={"prompt": "boat"})
        assert answer.status_code in (202, 429)
        if answer.status_code == 202:
            names.append(answer.json()["id"])
            assert api.get(f"/v1/videos/{names[-1]}").status_code == 200
    full = api.post("/v1/videos", json={"prompt": "boat"})
    assert full.status_code == 429
    assert full.headers["retry-after"] == "60"
    assert api.delete(f"/v1/videos/{names[0]}").json()["status"] == "cancelled"
    assert api.post("/v1/videos", json={"prompt": "boat"}).status_code == 202
    assert api.get(f"/v1/videos/{names[0]}").status_code == 404
    assert all(api.get(f"/v1/videos/{name}").status_code == 200 for name in names[1:])
