"""CUDA buffers over a runtime that is faked with host memory and runs enqueued work only when waited for."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adacache_engines.cuda import CudaDevice
from adacache_engines.errors import EngineError

FLOAT = np.dtype(np.float32)


@dataclass
class FakeCuda:
    """The part of ``cuda.bindings.runtime`` that is used."""

    capacity: int = 1 << 20
    blocks: dict[int, Any] = field(default_factory=dict)
    queue: list[Callable[[], object]] = field(default_factory=list)
    waits: int = 0
    cudaError_t: Any = field(default_factory=lambda: SimpleNamespace(cudaSuccess=0))
    cudaMemcpyKind: Any = field(
        default_factory=lambda: SimpleNamespace(
            cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
        )
    )

    def cudaSetDevice(self, index: int) -> tuple[int]:
        return (0 if index == 0 else 101,)

    def cudaStreamCreate(self) -> tuple[int, int]:
        return 0, 77

    def cudaMalloc(self, nbytes: int) -> tuple[int, int]:
        if sum(len(block) for block in self.blocks.values()) + nbytes > self.capacity:
            return 2, 0
        block = ctypes.create_string_buffer(b"\xff" * nbytes, nbytes)
        self.blocks[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.blocks[address]
        return (0,)

    cudaMallocHost, cudaFreeHost = cudaMalloc, cudaFree

    def cudaMemsetAsync(self, address: int, value: int, nbytes: int, stream: int) -> tuple[int]:
        assert stream == 77
        self.queue.append(lambda: ctypes.memset(address, value, nbytes))
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, nbytes: int, kind: int, stream: int) -> tuple[int]:
        assert stream == 77
        if kind == 1:  # pageable memory is read before the call returns
            data = ctypes.string_at(source, nbytes)
            self.queue.append(lambda: ctypes.memmove(target, data, nbytes))
        else:
            self.queue.append(lambda: ctypes.memmove(target, source, nbytes))
        return (0,)

    def cudaEventCreate(self) -> tuple[int, list[float]]:
        return 0, []

    def cudaEventDestroy(self, event: list[float]) -> tuple[int]:
        return (0,)

    def cudaEventRecord(self, event: list[float], stream: int) -> tuple[int]:
        self.queue.append(lambda: event.append(float(len(event))))
        return (0,)

    def cudaEventSynchronize(self, event: list[float]) -> tuple[int]:
        self.waits += 1
        while not event:
            self.queue.pop(0)()
        return (0,)

    def cudaEventElapsedTime(self, start: list[float], stop: list[float]) -> tuple[int, float]:
        assert start
        assert stop
        return 0, 1.5

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        self.waits += 1
        while self.queue:
            self.queue.pop(0)()
        return (0,)


@pytest.fixture
def api() -> FakeCuda:
    return FakeCuda()


def test_round_trip_and_views(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    buffer = device.empty((3, 2, 2), FLOAT)
    values = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    assert not buffer.read().any()
    buffer.write(values)
    np.testing.assert_array_equal(buffer.read(), values)
    np.testing.assert_array_equal(buffer.part(1, 3).read(), values[1:])
    np.testing.assert_array_equal(buffer.row(2).read(), values[2])
    buffer.row(0).write(np.full((2, 2), 9, np.float32))
    assert (buffer.read()[0] == 9).all()
    with pytest.raises(IndexError):
        buffer.row(3)
    with pytest.raises(ValueError, match="cannot hold"):
        buffer.write(values.astype(np.float64))


def test_only_results_wait(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    source, target = device.empty((4,), FLOAT), device.empty((4,), FLOAT)
    copy, readback = device.copy(source, target), device.readback(target)
    source.write(np.full(4, 2, np.float32))
    before = device.mark()
    copy()
    readback.start()
    source.write(np.full(4, 3, np.float32))  # behind the copy
    after = device.mark()
    assert api.waits == 0
    np.testing.assert_array_equal(readback.result(), np.full(4, 2, np.float32))
    assert api.queue, "the result came without waiting for what was enqueued after it"
    assert device.milliseconds(before, after) == 1.5
    np.testing.assert_array_equal(target.read(), np.full(4, 2, np.float32))


def test_memory_lives_as_long_as_a_view_of_it(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    buffer = device.empty((2, 8), FLOAT)
    row = buffer.row(1)
    del buffer
    device.synchronize()
    assert len(api.blocks) == 1
    del row
    assert not api.blocks


def test_errors_name_what_failed(api: FakeCuda) -> None:
    with pytest.raises(EngineError, match="GPU 3"):
        CudaDevice(index=3, api=api)
    device = CudaDevice(api=api)
    with pytest.raises(EngineError, match="allocating 4000000 bytes"):
        device.empty((1000, 1000), FLOAT)
    with pytest.raises(ValueError, match="cannot be copied"):
        device.copy(device.empty((2,), FLOAT), device.empty((3,), FLOAT))
