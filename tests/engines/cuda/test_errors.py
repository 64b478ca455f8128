"""Errors of a GPU: told with a later call than that which fails, and for good where CUDA says so."""

import gc
from collections.abc import Callable

import pytest

from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import DeviceLostError, EngineError
from tests.helpers.gpu.cuda_work import FLOAT, ones, recorded
from tests.helpers.gpu.fake_cuda import FakeCuda, Status


def test_an_error_of_earlier_work_is_told_as_such(api: FakeCuda) -> None:
    """The error comes with a later call, and with every call after it; dropping objects neither raises nor hangs."""
    device = CudaDevice(api=api)
    buffers, sequence = recorded(device)
    readback = device.readback(buffers[1])
    sequence()
    api.crash = Status.cudaErrorIllegalAddress
    readback.start()
    message = "cudaErrorIllegalAddress. Work that was enqueued before has failed"
    with pytest.raises(DeviceLostError, match=f"waiting for the GPU: {message}"):
        readback.result()
    later: dict[str, Callable[[], object]] = {
        "write": lambda: buffers[0].write(ones(1)),
        "read": buffers[0].read,
        "allocate": lambda: device.empty((4,), FLOAT),
        "launch": sequence,
        "record": device.sequence([device.copy(*buffers)]),
        "mark": device.mark,
        "ask": device.free_nbytes,
    }
    for call in later.values():
        with pytest.raises(DeviceLostError, match=message):
            call()
    buffers.clear()
    later.clear()
    del sequence, readback, call
    gc.collect()
    with pytest.raises(DeviceLostError, match=message):
        device.synchronize()


def test_a_call_that_does_not_wait_may_tell_an_earlier_error(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    buffers, _ = recorded(device)
    api.crash = Status.cudaErrorIllegalAddress
    with pytest.raises(DeviceLostError):
        buffers[1].read()
    with pytest.raises(DeviceLostError, match="enqueued before has failed"):
        device.copy(*buffers)()


def test_a_recording_ends_when_the_gpu_is_lost_inside_it(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    buffers = [device.empty((4,), FLOAT) for _ in range(2)]

    def lose() -> None:
        if api.capturing():
            api.broken = Status.cudaErrorIllegalAddress

    sequence = device.sequence([lose, device.copy(*buffers)])
    sequence()
    with pytest.raises(DeviceLostError, match="enqueued before has failed"):
        sequence()
    assert not device.is_recording


def test_a_failure_that_was_dealt_with_is_nobody_elses(api: FakeCuda) -> None:
    """CUDA keeps the last error for whoever asks next, such as a library after its own launch."""
    device = CudaDevice(api=api)

    def launched() -> None:
        with device.turn():
            api.launch(device.stream, "a kernel of a library", [], [], lambda *_: None)

    api.capacity = 64
    buffers = [device.empty((8,), FLOAT) for _ in range(2)]
    device.copy(*buffers)()
    del buffers
    buffers = [device.empty((8,), FLOAT) for _ in range(2)]  # at first there is too little memory
    launched()
    with pytest.raises(EngineError, match="allocating 4096 bytes"):
        device.empty((1024,), FLOAT)
    launched()
    device.copy(*buffers)()
    del buffers[0]
    device.mark()  # asks for the work on it, which is not ready
    launched()
    sequence = device.sequence([lambda: device.empty((1,), FLOAT)])
    sequence()
    with pytest.raises(EngineError, match="cannot be recorded"):
        sequence()
    launched()
