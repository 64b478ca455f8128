"""The faked CUDA runtime beside NVIDIA's bindings of the real one."""

from collections.abc import Callable
from typing import Any

import pytest

from adacache_engines.cuda.calls import LOST, native_handle
from adacache_engines.cuda.device import CudaDevice
from tests.helpers.gpu.fake_cuda import CaptureMode, Event, FakeCuda, Graph
from tools.gpu.scenarios.registry import SCENARIOS


def test_handles_and_errors_are_the_bindings_own() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    assert native_handle(runtime.cudaStream_t(77)) == 77
    told = {each.name for each in runtime.cudaError_t if "be terminated and relaunched" in flat(each.__doc__)}
    assert told == LOST


def flat(text: str | None) -> str:
    return " ".join((text or "").split())


@pytest.mark.parametrize("name", sorted(name for name in dir(FakeCuda) if name.startswith("cuda")))
def test_the_fake_has_calls_that_the_bindings_have(name: str) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    assert hasattr(runtime, name)


def test_the_bindings_take_what_they_are_given() -> None:
    """On a machine without a GPU they look at the arguments, and then answer that there is none."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("the handles are made up, which a GPU would not forgive")
    api, called = FakeCuda(), set()

    def bindings_own(name: str, place: int, value: Any) -> Any:
        if isinstance(value, Event):
            return runtime.cudaEvent_t(0)
        if isinstance(value, Graph):
            return (runtime.cudaGraphExec_t if value.executable else runtime.cudaGraph_t)(0)
        if isinstance(value, CaptureMode):
            return runtime.cudaStreamCaptureMode(value.value)
        if (name, place) == ("cudaMemcpyAsync", 3):
            return runtime.cudaMemcpyKind(value)
        if (name, place) == ("cudaDeviceGetAttribute", 0):
            return runtime.cudaDeviceAttr(value)
        return native_handle(value)

    def both(name: str) -> Callable[..., Any]:
        fake = getattr(api, name)

        def call(*arguments: Any) -> Any:
            called.add(name)
            result = fake(*arguments)
            given = [bindings_own(name, place, value) for place, value in enumerate(arguments)]
            assert len(getattr(runtime, name)(*given)) == len(result), name
            return result

        return call

    names = {name for name in dir(FakeCuda) if name.startswith("cuda") and callable(getattr(FakeCuda, name))}
    for name in names - {"cudaError_t", "cudaStreamCaptureMode"}:
        setattr(api, name, both(name))
    for name in ("bindings_alone", "times_in_recordings", "drops_behind_work", "out_of_memory", "dropped_devices"):
        SCENARIOS[name](api)
    device = CudaDevice(api=api)
    assert device.compute_capability()
    assert device.gpu_name()
    assert called == names - {"cudaError_t", "cudaStreamCaptureMode"}
