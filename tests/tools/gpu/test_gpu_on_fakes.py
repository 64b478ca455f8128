"""The checks for a GPU, run on fakes: they are right before a GPU sees them, and each of them can fail."""

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
from adacache_engines.tensorrt.backend import RUNTIME_CACHE, TrtBackend
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.pipeline import Pipeline
from tests.helpers.gpu import gpu_checks
from tests.helpers.gpu.fake_cuda import FakeCuda
from tests.helpers.gpu.fake_tensorrt import Module, library, write_plans
from tests.helpers.model.fake_model import functions, write_bundle
from tools.gpu.machine import Gpu, find_gpu
from tools.gpu.requests import small_request


@dataclass
class Rig:
    """A bundle whose plans run numpy functions on a fake GPU; the functions may be changed to see a check fail."""

    bundle: Bundle
    cuda: FakeCuda
    functions: dict[str, Function] = field(default_factory=functions)

    def opened(self, graphs: bool = True) -> TrtBackend:
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
def fakes(tmp_path: Path) -> Iterator[Rig]:
    api = FakeCuda(capacity=1 << 24)
    yield Rig(write_plans(write_bundle(tmp_path / "bundle")), api)
    assert api.faults == []


def cpu() -> FakeBackend:
    """The backend that the fakes are compared with."""
    return FakeBackend(functions())


def both(check: Callable[[], object], fakes: Rig, name: str, change: Callable[[Any], Any], **output: str) -> None:
    """The check passes, and fails when an engine changes."""
    check()
    fakes.changed(name, change, **output)
    with pytest.raises(AssertionError):
        check()


def test_every_stage(fakes: Rig) -> None:
    both(
        lambda: gpu_checks.check_stages(fakes.bundle, fakes.opened(), cpu(), "fp16"),
        fakes,
        "temporal.01",
        lambda value: value + np.float32(0.2),
        output="attn",
    )


def test_every_stage_with_nan(fakes: Rig) -> None:
    both(
        lambda: gpu_checks.check_stages(fakes.bundle, fakes.opened(), cpu(), "bf16"),
        fakes,
        "final",
        lambda value: value * np.float32("nan"),
        output="prediction",
    )


@pytest.mark.parametrize("policy", gpu_checks.POLICIES)
def test_generations(fakes: Rig, policy: str) -> None:
    both(
        lambda: gpu_checks.check_generation(fakes.bundle, fakes.opened(), cpu(), "fp32", policy),
        fakes,
        "spatial.00",
        lambda value: value * np.float32(1.5),
    )


@pytest.mark.parametrize("policy", gpu_checks.POLICIES)
def test_observations(fakes: Rig, policy: str) -> None:
    """Distances that are too long are noticed; a policy that never reuses sees none."""

    def check() -> None:
        pipelines = [Pipeline(fakes.bundle, backend) for backend in (fakes.opened(), cpu())]
        request = small_request(fakes.bundle, gpu_checks.STEPS, gpu_checks.POLICIES[policy])
        given, wanted = (pipeline.generate(request) for pipeline in pipelines)
        gpu_checks.check_observations(given, wanted, "fp32", policy)

    if policy == "never":
        check()
    else:
        both(check, fakes, "hidden_change", lambda value: value * np.float32(1.01), output="change")


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
        lambda fakes: gpu_checks.check_recorded_graphs(fakes.bundle, fakes.opened, "stack"),
        lambda fakes: gpu_checks.check_recorded_graphs(fakes.bundle, fakes.opened, "block"),
        lambda fakes: gpu_checks.check_shared_arena(fakes.bundle, fakes.opened),
        lambda fakes: gpu_checks.check_generations_in_threads(fakes.bundle, fakes.opened()),
        lambda fakes: gpu_checks.check_repetition(fakes.bundle, fakes.opened()),
    ],
    ids=["stack", "block", "arena", "threads", "again"],
)
def test_not_a_bit(fakes: Rig, check: Callable[[Rig], None]) -> None:
    both(lambda: check(fakes), fakes, "spatial.01", Counted())


def test_private_memory_is_private(fakes: Rig) -> None:
    backend = fakes.opened()
    backend._arena = gpu_checks.PrivateArena(backend.device)
    calls = Pipeline(fakes.bundle, backend).calls(small_request(fakes.bundle, 4, NeverReuse()))
    next(calls)
    largest = max(len(block) for block in fakes.cuda.blocks.values())
    assert len([block for block in fakes.cuda.blocks.values() if len(block) == largest]) > 4


def test_the_runtime_cache(fakes: Rig, caplog: pytest.LogCaptureFixture) -> None:
    gpu_checks.check_runtime_cache(fakes.bundle, fakes.opened, caplog)


def test_a_runtime_cache_that_is_not_read_is_noticed(fakes: Rig, caplog: pytest.LogCaptureFixture) -> None:
    def forgetful() -> TrtBackend:
        for cache in fakes.bundle.folder.rglob(RUNTIME_CACHE):
            cache.unlink()
        return fakes.opened()

    with pytest.raises(AssertionError, match="is not used"):
        gpu_checks.check_runtime_cache(fakes.bundle, forgetful, caplog)


def test_a_thread_that_fails_is_told(fakes: Rig) -> None:
    pipeline = Pipeline(fakes.bundle, fakes.opened())
    requests = [small_request(fakes.bundle, steps, NeverReuse()) for steps in (3, 0)]
    with pytest.raises(InputError, match="steps"):
        gpu_checks.in_threads(pipeline, requests)


def test_the_gpu_is_described() -> None:
    ok = SimpleNamespace(name="cudaSuccess")
    found = SimpleNamespace(name=b"Some GPU", major=9, minor=0, totalGlobalMem=80e9, multiProcessorCount=132)
    api = SimpleNamespace(
        cudaError_t=SimpleNamespace(cudaSuccess=ok),
        cudaGetDeviceProperties=lambda _: (ok, found),
        cudaDriverGetVersion=lambda: (ok, 13020),
        cudaRuntimeGetVersion=lambda: (ok, 12090),
        cudaGetLastError=lambda: (ok,),
    )
    assert find_gpu(api) == Gpu("Some GPU", "9.0", 80e3, 132, "13.2", "12.9")
    none = SimpleNamespace(name="cudaErrorNoDevice")
    api.cudaGetDeviceProperties = lambda _: (none, None)
    with pytest.raises(EngineError, match="looking for a GPU: cudaErrorNoDevice"):
        find_gpu(api)
