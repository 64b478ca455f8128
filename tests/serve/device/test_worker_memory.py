"""The memory of a worker: what is planned, held and freed."""

import gc
import itertools
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.contract.device import HostBuffer, HostDevice
from adacache_engines.contract.fake import FakeBackend, Function
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import DeviceLostError, EngineError
from adacache_engines.tensorrt.backend import TrtBackend
from adacache_runtime.pipeline import Pipeline
from adacache_serve.device.messages import (
    Cancel,
    Cancelled,
    Completed,
    Failed,
    Memory,
    PhaseEnded,
)
from adacache_serve.device.worker import Models
from tests.helpers.gpu.fake_cuda import FakeCuda, Status
from tests.helpers.gpu.fake_tensorrt import Module, library, write_plans
from tests.helpers.serving.fake_server import functions, write_model
from tests.helpers.serving.worker_rig import ENDS, MODEL, PICTURE, Rig, fake


@dataclass(frozen=True)
class Watched(HostDevice):
    """Host memory that knows which of its arrays are alive."""

    alive: "weakref.WeakSet[Any]" = field(default_factory=weakref.WeakSet)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> HostBuffer:
        buffer = HostBuffer(np.zeros(shape, dtype).view(Kept))
        self.alive.add(buffer.array)
        return buffer


class Kept(np.ndarray):
    """An array that can be in a set of weak references."""

    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.mark.parametrize("end", ["cancelled", "failed", "completed", "cancelled while it waits"])
def test_what_a_job_held_is_free_when_it_has_ended(tmp_path: Path, end: str) -> None:
    """Buffers are freed at once, without garbage collection, those of an image included."""
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
    """The device never hands out more bytes than planned, and the plan never exceeds the budget."""
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
    assert waited  # how many at once depends on which jobs come first, which is a matter of their time
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
    """Small jobs that would fit do not overtake a large one for ever."""
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


def test_a_worker_ends_when_its_gpu_is_lost(tmp_path: Path) -> None:
    """Nothing else would run in this process; no job fails for good, since the next worker makes it."""
    cuda = FakeCuda(capacity=1 << 24)
    rig = Rig(on_gpu(tmp_path / MODEL, cuda), tmp_path / "out")
    for name in ("one", "other"):
        rig.begin(name, policy="adacache-fast", steps=9)
    for _ in range(6):
        rig.turn()
    cuda.crash = Status.cudaErrorIllegalAddress
    with pytest.raises(DeviceLostError, match="start it again"):
        rig.finish()
    assert rig.of(ENDS) == []
    assert cuda.faults == []
