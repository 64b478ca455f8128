"""Several generations in flight in one worker: each as if alone, within the memory that was planned."""

import gc
import itertools
import json
import multiprocessing
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.contract.device import HostBuffer, HostDevice
from adacache_engines.contract.fake import FakeBackend, Function
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import EngineError
from adacache_engines.tensorrt.backend import TrtBackend
from adacache_runtime.pipeline import Pipeline
from adacache_serve.device.messages import (
    Begin,
    Called,
    Cancel,
    Cancelled,
    Completed,
    Failed,
    FromWorker,
    Memory,
    PhaseEnded,
    ToWorker,
    from_worker,
)
from adacache_serve.device.process import work
from adacache_serve.device.supervisor import FIRST_PAUSE
from adacache_serve.device.worker import Models, Worker
from adacache_serve.jobs.results import open_results
from adacache_serve.jobs.service import Service
from adacache_serve.jobs.store import Store
from adacache_serve.orders.images import write_image
from adacache_serve.orders.schema import CreateVideo
from adacache_serve.settings import Settings
from tests.helpers import fake_model
from tests.helpers.fake_cuda import FakeCuda
from tests.helpers.fake_server import functions, write_model
from tests.helpers.fake_tensorrt import Module, library, write_plans
from tests.helpers.waiting import HANG_SECONDS, until

MODEL = "fake"
ENDS = (Completed, Failed, Cancelled)


class Rig:
    """A worker in this process, taken turn by turn."""

    def __init__(
        self, models: Models, folder: Path, budget: int | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self.folder, self.said = folder, list[FromWorker]()
        folder.mkdir(exist_ok=True)
        self.worker = Worker(theirs, models, Settings(folder, memory_budget=budget), clock)
        self._running: set[str] = set()

    def send(self, message: ToWorker) -> None:
        self._ours.send_bytes(message.model_dump_json().encode())

    def begin(self, name: str, model: str = MODEL, image: np.ndarray | None = None, **order: Any) -> None:
        path = None
        if image is not None:
            path = self.folder / f"{name}.npy"
            write_image(path, image)
        asked = CreateVideo(**{"prompt": "a boat", "seed": 1, **order})
        output = str(self.folder / name)
        self._running.add(name)
        self.send(Begin(job=name, attempt=1, model=model, order=asked, image=path and str(path), output=output))

    def turn(self) -> None:
        assert self._running, "it would wait for ever"
        self.worker.turn()
        while self._ours.poll(0):
            message = from_worker.validate_json(self._ours.recv_bytes())
            self.said.append(message)
            if isinstance(message, ENDS):
                self._running.discard(message.job)

    def finish(self) -> dict[str, bytes]:
        """Until all jobs have ended; what they made."""
        while self._running:
            self.turn()
        return {said.job: (self.folder / said.file).read_bytes() for said in self.of(Completed)}

    def of(self, kind: Any, job: str | None = None) -> list[Any]:
        return [said for said in self.said if isinstance(said, kind) and job in (None, getattr(said, "job", None))]

    def calls(self, job: str) -> list[dict[str, Any]]:
        """What a call decided and measured, without times."""
        return [{k: v for k, v in said.call.items() if not k.endswith("_ms")} for said in self.of(Called, job)]


def fake(folder: Path, device: HostDevice | None = None, own: Mapping[str, Function] = {}) -> Models:
    bundle = write_model(folder, conditioned=True)
    return {MODEL: Pipeline(bundle, FakeBackend({**functions(), **own}, device=device or HostDevice()))}


PICTURE = np.full((1, 2, 5, 3), 90, np.uint8)
MIX: dict[str, dict[str, Any]] = {
    "never": {},
    "adacache": {"policy": "adacache-fast", "steps": 9},
    "every call measured": {"policy": "fbcache-slow", "steps": 7},
    "whole model": {"policy": "easycache-slow", "steps": 8, "prompt": "another boat"},
    "extrapolated": {"policy": "interval-3+extrapolate", "seed": 4},
    "large": {"size": "8x8", "frames": 8, "policy": "interval-2"},
    "image": {"frames": 1, "steps": 3},
    "pictured": {"image": PICTURE, "policy": "adacache-fast", "steps": 6},
    "at the end": {"image": PICTURE, "image_at": -1, "seed": 2},
}


def alone(models: Models, folder: Path, mix: Mapping[str, dict[str, Any]]) -> Rig:
    """One after another."""
    rig = Rig(models, folder)
    for name, order in mix.items():
        rig.begin(name, **order)
        rig.finish()
    return rig


def test_jobs_in_flight_are_made_as_if_alone(tmp_path: Path) -> None:
    """Bit for bit, with the same decisions and distances, whatever the model keeps for whom."""
    models = fake(tmp_path / MODEL)
    expected = alone(models, tmp_path / "alone", MIX)
    rig = Rig(models, tmp_path / "together", clock=itertools.count().__next__)
    for name, order in MIX.items():
        rig.begin(name, **order)
    assert rig.finish() == expected.finish()
    assert len(rig.of(Completed)) == len(MIX)
    for name in MIX:
        assert rig.calls(name) == expected.calls(name)
    order = [said.job for said in rig.of(Called)]
    assert sum(a != b for a, b in itertools.pairwise(order)) > len(order) / 2  # and they were in turn


@pytest.mark.slow
def test_real_engines_in_turn_give_what_they_give_alone(
    decoding_folder: Path, conditioned_folder: Path, tmp_path: Path
) -> None:
    """Two models with ONNX Runtime in one process: text encoder, decoder, sizes, policies and given frames."""
    from adacache_runtime.caching.presets import PRESETS
    from adacache_runtime.request import Request
    from adacache_serve.device.video_file import write_events
    from tests.helpers.reference import MASK, drawn, request

    latte, open_sora = Pipeline.open(decoding_folder), Pipeline.open(conditioned_folder)
    prompt = {"prompts": ("a red circle moves fast",), "steps": 5}
    videos = {
        "never": Request(**prompt),
        "interval": Request(**prompt, policy=PRESETS["interval-2"], seed=3),
        "wide": Request(**prompt, policy=PRESETS["adacache-fast"], height=64, width=96),
        "image": Request(prompts=("a blue square",), frames=1, steps=4),
    }
    given = {"steps": 5, "latents": drawn(1), "mask": MASK}
    calls = {"given": request(**given), "given, reused": request(**given, policy=PRESETS["adacache-fast"])}

    def begun(folder: Path) -> dict[str, Iterator[Any]]:
        folder.mkdir()
        suffix = {"image": ".png"}
        made: dict[str, Any] = {
            name: write_events(latte.prepare(asked), folder / f"{name}{suffix.get(name, '.mp4')}")
            for name, asked in videos.items()
        }
        return made | {name: open_sora.calls(asked) for name, asked in calls.items()}

    def whole(generator: Any, results: list[Any]) -> Iterator[None]:
        results.append((yield from generator))

    def drained(generators: dict[str, Any], in_turn: bool) -> dict[str, Any]:
        results: dict[str, list[Any]] = {name: [] for name in generators}
        steps = [whole(generator, results[name]) for name, generator in generators.items()]
        for _ in itertools.zip_longest(*steps) if in_turn else itertools.chain(*steps):
            pass
        return {name: found[0] for name, found in results.items()}

    expected = drained(begun(tmp_path / "alone"), in_turn=False)
    together = drained(begun(tmp_path / "together"), in_turn=True)
    for name in calls:
        np.testing.assert_array_equal(together[name].latents, expected[name].latents, strict=True)
        assert together[name].trace.computed() == expected[name].trace.computed()
    files = {path.name: path.read_bytes() for path in (tmp_path / "alone").iterdir()}
    assert len(files) == len(videos)
    assert {path.name: path.read_bytes() for path in (tmp_path / "together").iterdir()} == files


def test_a_long_job_does_not_block_a_short_one(tmp_path: Path) -> None:
    """It has half of the turns while it is there, however long the other one is."""
    rig = Rig(fake(tmp_path / MODEL), tmp_path / "out", clock=itertools.count().__next__)
    rig.begin("long", steps=200)
    while len(rig.calls("long")) < 50:
        rig.turn()
    rig.begin("short", steps=4)
    while not rig.of(Completed, "short"):
        rig.turn()
    assert len(rig.calls("short")) == 4
    assert len(rig.calls("long")) < 50 + 4 + 8  # its calls, and its other steps
    rig.send(Cancel(job="long"))
    rig.finish()


def test_encoding_is_a_step_of_its_own(tmp_path: Path) -> None:
    """So the text encoder, which may take seconds, is one turn, and the phases are told with their times."""
    rig = Rig(fake(tmp_path / MODEL), tmp_path / "out")
    rig.begin("one", image=PICTURE)
    rig.turn()  # the picture
    assert rig.of(PhaseEnded) == []
    rig.turn()  # the text
    (encoded,) = rig.of(PhaseEnded)
    assert (encoded.phase, encoded.model, encoded.error) == ("encode", MODEL, None)
    assert rig.calls("one") == []
    rig.finish()
    phases = rig.of(PhaseEnded)
    assert [said.phase for said in phases] == ["encode", "denoise", "decode"]
    for before, after in itertools.pairwise(phases):
        assert before.began <= before.ended <= after.began
    assert all(0 < said.device_seconds <= said.ended - said.began + 0.01 for said in phases)


class BrokenError(Exception):
    """Nobody's."""


@pytest.mark.parametrize(
    ("error", "code"), [(EngineError("no"), "EngineError"), (MemoryError(), "MemoryError"), (BrokenError(), "internal")]
)
def test_an_error_is_that_of_its_job_alone(tmp_path: Path, error: Exception, code: str) -> None:
    """In the middle of its calls; the others' videos are those that they are without it, and more can be made."""
    usual, count = functions(), itertools.count()

    def breaking(given: Mapping[str, Any]) -> Mapping[str, Any]:
        if (given["text"] > 40).any() and next(count) == 2:  # the mark of the fake encoder
            raise error
        return usual[fake_model.BLOCKS[1]](given)

    plain = {name: {**order, "prompt": "a boat"} for name, order in list(MIX.items())[:3]}
    expected = alone(fake(tmp_path / "sound"), tmp_path / "alone", plain)
    block = {fake_model.BLOCKS[0]: fake_model.functions()[fake_model.BLOCKS[0]], fake_model.BLOCKS[1]: breaking}
    rig = Rig(fake(tmp_path / MODEL, own=block), tmp_path / "out")
    rig.begin("bad", prompt="slow", steps=20)
    for name, order in plain.items():
        rig.begin(name, **order)
    assert rig.finish() == expected.finish()
    (failed,) = rig.of(Failed)
    assert (failed.job, failed.code, len(rig.calls("bad"))) == ("bad", code, 2)
    assert rig.of(PhaseEnded, "bad")[-1].error == code
    rig.begin("after", **plain["never"])
    assert rig.finish()["after"] == expected.finish()["never"]
    assert not list((tmp_path / "out").glob("*bad*"))


def test_what_fails_before_it_begins_leaves_the_others(tmp_path: Path) -> None:
    rig = Rig(fake(tmp_path / MODEL), tmp_path / "out", budget=20_000)
    rig.begin("one", steps=4)
    rig.turn()
    rig.begin("unknown policy", policy="nobody's")
    rig.begin("breaks", prompt="break")
    rig.begin("large", size="8x8", frames=8)
    assert list(rig.finish()) == ["one"]
    codes = {said.job: said.code for said in rig.of(Failed)}
    assert codes == {"unknown policy": "FieldError", "breaks": "EngineError", "large": "InputError"}
    message = next(said.message for said in rig.of(Failed, "large"))
    assert "MB of memory beside the weights, and all memory for videos is 0.0 MB" in message


@dataclass(frozen=True)
class Watched(HostDevice):
    """Host memory whose arrays are known for as long as somebody holds them."""

    alive: "weakref.WeakSet[Any]" = field(default_factory=weakref.WeakSet)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> HostBuffer:
        buffer = HostBuffer(np.zeros(shape, dtype).view(Kept))
        self.alive.add(buffer.array)
        return buffer


class Kept(np.ndarray):
    """An array that weak references may be kept of in a set."""

    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.mark.parametrize("end", ["cancelled", "failed", "completed", "cancelled while it waits"])
def test_what_a_job_held_is_free_when_it_has_ended(tmp_path: Path, end: str) -> None:
    """At once, without a collection of garbage; of a picture, too."""
    device, usual, count = Watched(), functions(), itertools.count()

    def breaking(given: Mapping[str, Any]) -> Mapping[str, Any]:
        if end == "failed" and next(count) == 3:
            raise EngineError("no")
        return usual["final"](given)

    rig = Rig(fake(tmp_path / MODEL, device, {"final": breaking}), tmp_path / "out", budget=10**6)
    gc.collect()
    gc.disable()
    try:
        rig.begin("job", policy="adacache-fast", steps=9, image=PICTURE)
        if end == "cancelled while it waits":
            rig.send(Cancel(job="job"))
            rig.begin("another", steps=1)
        else:
            for _ in range(4):
                rig.turn()
            assert len(device.alive) > 10
        if end == "cancelled":
            rig.begin("another", steps=1)
            rig.send(Cancel(job="job"))
        rig.finish()
        assert isinstance(rig.of(ENDS, "job")[0], {"failed": Failed, "completed": Completed}.get(end, Cancelled))
        assert len(device.alive) == 0
        assert rig.of(Memory)[-1].planned == 0
    finally:
        gc.enable()


def on_gpu(folder: Path, cuda: FakeCuda, **own: Function) -> Models:
    bundle = write_plans(write_model(folder, conditioned=True))
    functions_ = {**functions(), **own}
    backend = TrtBackend(bundle, library(Module(cuda, functions=functions_)), CudaDevice(api=cuda))
    return {MODEL: Pipeline(bundle, backend, text_backend=FakeBackend(functions_))}


def test_memory_stays_within_the_budget_on_a_gpu_and_all_are_made(tmp_path: Path) -> None:
    """The bytes that the device hands out are never more than planned, nor that more than the budget."""
    cuda = FakeCuda(capacity=1 << 24)
    models = on_gpu(tmp_path / MODEL, cuda)
    sizes = [{"frames": 2}, {"frames": 8, "size": "8x8"}, {"frames": 4}, {"frames": 1}]
    orders = {str(i): {**sizes[i % 4], "policy": ["never", "adacache-fast"][i % 2], "steps": 6} for i in range(9)}
    unlimited = Rig(models, tmp_path / "unlimited")
    for name, order in orders.items():
        unlimited.begin(name, **order)
    expected = unlimited.finish()
    most = max(said.planned for said in unlimited.of(Memory))
    budget = most // 3
    rig = Rig(models, tmp_path / "out", budget=budget)
    cuda.peak_nbytes, waited = 0, 0
    for name, order in orders.items():
        rig.begin(name, **order)
    while len(rig.of(ENDS)) < len(orders):
        rig.turn()
        told = rig.of(Memory)[-1]
        assert cuda.device_nbytes() <= told.planned
        waited = max(waited, told.waiting)
    assert cuda.peak_nbytes <= max(said.planned for said in rig.of(Memory)) <= budget
    assert waited > 3
    assert rig.finish() == expected
    assert cuda.device_nbytes() == 0
    assert cuda.faults == []


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_a_gpu_is_empty_when_the_jobs_have_ended_early(tmp_path: Path, end: str) -> None:
    cuda, count, usual = FakeCuda(capacity=1 << 24), itertools.count(), functions()

    def breaking(given: Mapping[str, Any]) -> Mapping[str, Any]:
        spoilt = np.nan if end == "failed" and next(count) >= 12 else 1.0
        return {"prediction": usual["final"](given)["prediction"] * spoilt}

    rig = Rig(on_gpu(tmp_path / MODEL, cuda, final=breaking), tmp_path / "out")
    for number in range(3):
        rig.begin(str(number), steps=30, policy="adacache-fast")
    for _ in range(12):
        rig.turn()
    assert cuda.device_nbytes() > 0
    for number in range(3) if end == "cancelled" else ():
        rig.send(Cancel(job=str(number)))
    if end == "cancelled":
        rig.begin("last", steps=1)
    rig.finish()
    assert {said.job: type(said) for said in rig.of(ENDS)} == {
        **dict.fromkeys("012", Cancelled if end == "cancelled" else Failed),
        **({"last": Completed} if end == "cancelled" else {}),
    }
    assert cuda.device_nbytes() == 0


def test_who_waits_for_memory_begins_in_order(tmp_path: Path) -> None:
    """A large one is not overtaken for ever by small ones that would fit."""
    models = fake(tmp_path / MODEL)
    large: dict[str, Any] = {"size": "8x8", "frames": 8, "steps": 3}
    probe = Rig(models, tmp_path / "probe")
    probe.begin("large", **large)
    probe.finish()
    rig = Rig(models, tmp_path / "out", budget=max(said.planned for said in probe.of(Memory)))
    rig.begin("0", steps=3)
    rig.turn()
    rig.begin("1", **large)
    for name in "23456":
        rig.begin(name, steps=3)
    rig.finish()
    began = [said.job for said in rig.said if said.kind == "began"]
    assert began == list("0123456")
    next_began = next(i for i, said in enumerate(rig.said) if said.kind == "began" and said.job == "2")
    _encoded, denoised, _decoded = rig.of(PhaseEnded, "1")
    assert rig.said.index(denoised) < next_began < rig.said.index(rig.of(Completed, "1")[0])


def broken_models(settings: Settings) -> Models:
    return fake(settings.data / "broken", own={"final": lambda given: {"prediction": given["latents"] * np.nan}})


def forbidden(connection: Connection, settings: Settings) -> None:
    """A worker, in a process of its own, that may not lower its priority."""

    def nice(_increment: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    os.nice = nice
    work(connection, settings, None, broken_models)


def test_a_model_that_makes_no_video_is_not_served(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The worker says why and ends, without a word to the server. That it had no permission to be nice is no matter."""
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
