"""The tests for a GPU, run on the fakes: what they do is right before a GPU sees them, and each of them can fail."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.files import Bundle
from adacache_engines.contract.fake import FakeBackend, Function
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import EngineError, InputError
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_engines.tensorrt.backend import TrtBackend
from adacache_runtime.caching.policies.never import NeverReuse
from adacache_runtime.pipeline import Pipeline
from tests.helpers.fake_cuda import FakeCuda
from tests.helpers.fake_model import functions, write_bundle
from tests.helpers.fake_tensorrt import Module, library, write_plans
from tests.tools import test_gpu
from tools.gpu import rig
from tools.gpu.machine import Gpu, find_gpu


@dataclass
class Rig:
    """What test_gpu's fixtures give, on fakes; ``functions`` may be changed to see a test fail."""

    bundle: Bundle
    cuda: FakeCuda
    functions: dict[str, Function] = field(default_factory=functions)

    def plans(self, _precision: str) -> Bundle:
        return self.bundle

    def opened(self, _precision: str, graphs: bool = True) -> TrtBackend:
        module = Module(self.cuda, functions=self.functions)
        return TrtBackend(self.bundle, library(module), CudaDevice(api=self.cuda, graphs=graphs))

    def changed(self, name: str, change: Callable[[Any], Any], output: str = "hidden_out") -> None:
        """Has an engine give something else."""
        whole = self.functions[name]

        def function(given: Any) -> Any:
            outputs = whole(given)
            return {**outputs, output: change(outputs[output])}

        self.functions[name] = function


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    api = FakeCuda(capacity=1 << 24)
    monkeypatch.setattr(test_gpu, "on_cpu", lambda _folder: FakeBackend(functions()))
    yield Rig(write_plans(write_bundle(tmp_path / "bundle")), api)
    assert api.faults == []


def both(check: Callable[[], None], fakes: Rig, name: str, change: Callable[[Any], Any], **output: str) -> None:
    """The check passes, and fails when an engine changes."""
    check()
    fakes.changed(name, change, **output)
    with pytest.raises(AssertionError):
        check()


def test_every_stage(fakes: Rig) -> None:
    both(
        lambda: test_gpu.test_every_stage_gives_what_the_cpu_gives("fp16", fakes.opened, fakes.plans),
        fakes,
        "temporal.01",
        lambda value: value + np.float32(0.2),
        output="attn",
    )


def test_every_stage_with_nan(fakes: Rig) -> None:
    both(
        lambda: test_gpu.test_every_stage_gives_what_the_cpu_gives("bf16", fakes.opened, fakes.plans),
        fakes,
        "final",
        lambda value: value * np.float32("nan"),
        output="prediction",
    )


@pytest.mark.parametrize("policy", test_gpu.POLICIES)
def test_generations(fakes: Rig, policy: str) -> None:
    both(
        lambda: test_gpu.test_a_generation_follows_the_cpus("fp32", policy, fakes.opened, fakes.plans),
        fakes,
        "spatial.00",
        lambda value: value * np.float32(1.5),
    )


class Counted:
    """Gives something else each time that a stage runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, value: Any) -> Any:
        self.runs += 1
        return value * np.float32(1 + 1e-5 * self.runs)


@pytest.mark.parametrize(
    "check",
    [
        lambda fakes: test_gpu.test_recorded_graphs_change_nothing("stack", fakes.opened, fakes.plans),
        lambda fakes: test_gpu.test_recorded_graphs_change_nothing("block", fakes.opened, fakes.plans),
        lambda fakes: test_gpu.test_sharing_the_arena_changes_nothing(fakes.opened, fakes.plans),
        lambda fakes: test_gpu.test_two_generations_beside_each_other_are_the_same_alone(fakes.opened, fakes.plans),
        lambda fakes: test_gpu.test_the_same_again_is_the_same(fakes.opened, fakes.plans),
    ],
    ids=["stack", "block", "arena", "threads", "again"],
)
def test_not_a_bit(fakes: Rig, check: Callable[[Rig], None]) -> None:
    both(lambda: check(fakes), fakes, "spatial.01", Counted())


def test_private_memory_is_private(fakes: Rig) -> None:
    backend = fakes.opened("fp16")
    backend._arena = rig.PrivateArena(backend.device)  # type: ignore[arg-type]
    calls = Pipeline(fakes.bundle, backend).calls(rig.small_request(fakes.bundle, 4, NeverReuse()))
    next(calls)
    largest = max(len(block) for block in fakes.cuda.blocks.values())
    assert len([block for block in fakes.cuda.blocks.values() if len(block) == largest]) > 4


def test_the_runtime_cache(fakes: Rig, caplog: pytest.LogCaptureFixture) -> None:
    given = library(Module(fakes.cuda))
    test_gpu.test_the_runtime_cache_is_read_again(given, fakes.opened, fakes.plans, caplog)


def test_onnxruntime_on_cuda(fakes: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider is stood in for by the fake device with engines of its own."""
    monkeypatch.setattr(test_gpu, "OrtBackend", lambda _folder, _provider: fakes.opened("fp16", graphs=False))
    both(
        lambda: test_gpu.test_onnxruntime_on_cuda_gives_what_the_cpu_gives("fp16", lambda _: fakes.bundle.folder),
        fakes,
        "final",
        lambda value: value + 1,
        output="prediction",
    )


def test_onnxruntime_without_cuda_is_skipped(fakes: Rig) -> None:
    assert test_gpu.OrtBackend is OrtBackend
    with pytest.raises(pytest.skip.Exception, match="CUDAExecutionProvider"):
        test_gpu.test_onnxruntime_on_cuda_gives_what_the_cpu_gives("fp16", lambda _: fakes.bundle.folder)


def test_a_thread_that_fails_is_told(fakes: Rig) -> None:
    pipeline = Pipeline(fakes.bundle, fakes.opened("fp16"))
    requests = [rig.small_request(fakes.bundle, steps, NeverReuse()) for steps in (3, 0)]
    with pytest.raises(InputError, match="steps"):
        rig.beside_each_other(pipeline, requests)


def test_the_gpu_is_described() -> None:
    ok = SimpleNamespace(name="cudaSuccess")
    found = SimpleNamespace(name=b"Some GPU", major=9, minor=0, totalGlobalMem=80e9, multiProcessorCount=132)
    api = SimpleNamespace(
        cudaError_t=SimpleNamespace(cudaSuccess=ok),
        cudaGetDeviceProperties=lambda _: (ok, found),
        cudaDriverGetVersion=lambda: (ok, 13020),
        cudaRuntimeGetVersion=lambda: (ok, 12090),
    )
    assert find_gpu(api) == Gpu("Some GPU", "9.0", 80e3, 132, "13.2", "12.9")
    none = SimpleNamespace(name="cudaErrorNoDevice")
    api.cudaGetDeviceProperties = lambda _: (none, None)
    with pytest.raises(EngineError, match="looking for a GPU: cudaErrorNoDevice"):
        find_gpu(api)
