"""Buffers in an NVIDIA GPU's memory, and one stream on which everything runs in order.

Through NVIDIA's own bindings of the CUDA runtime. Nothing waits for the GPU but ``read``, ``Readback.result`` and
``milliseconds``.
"""

import ctypes
import math
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adacache_engines.buffers import Array, Buffer, Call
from adacache_engines.errors import EngineError, require


@dataclass(frozen=True)
class CudaBuffer:
    """A tensor in device memory; ``owner`` frees it when the last buffer that shares it is gone."""

    device: "CudaDevice"
    owner: object
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def part(self, start: int, stop: int) -> "CudaBuffer":
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        return self._view(start, (max(stop - start, 0), *self.shape[1:]))

    def row(self, index: int) -> "CudaBuffer":
        if not 0 <= index < self.shape[0]:
            raise IndexError(index)
        return self._view(index, self.shape[1:])

    def _view(self, start: int, shape: tuple[int, ...]) -> "CudaBuffer":
        step = math.prod(self.shape[1:]) * self.dtype.itemsize
        return CudaBuffer(self.device, self.owner, self.address + start * step, shape, self.dtype)

    def write(self, array: Array) -> None:
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"a buffer {self.dtype} {self.shape} cannot hold {array.dtype} {array.shape}")
        contiguous = np.ascontiguousarray(array)
        # from ordinary memory the driver copies out of the array before it returns
        self.device.enqueue_copy(self.address, contiguous.ctypes.data, self.nbytes, "HostToDevice")

    def read(self) -> Array:
        array = np.empty(self.shape, self.dtype)
        self.device.enqueue_copy(array.ctypes.data, self.address, self.nbytes, "DeviceToHost")
        self.device.synchronize()
        return array


class _Memory:
    """An allocation that is freed with this object."""

    def __init__(self, api: Any, nbytes: int, pinned: bool) -> None:
        allocate, release = (api.cudaMallocHost, api.cudaFreeHost) if pinned else (api.cudaMalloc, api.cudaFree)
        self.address = int(_checked(api, allocate(max(nbytes, 1)), f"allocating {nbytes} bytes"))
        weakref.finalize(self, release, self.address)


class _Event:
    """A point on the stream that is forgotten with this object."""

    def __init__(self, api: Any, stream: int) -> None:
        self.handle = _checked(api, api.cudaEventCreate(), "creating an event")
        weakref.finalize(self, api.cudaEventDestroy, self.handle)
        _checked(api, api.cudaEventRecord(self.handle, stream), "recording an event")


class CudaReadback:
    """Copies a buffer to pinned host memory behind the enqueued work; ``result`` waits for that copy only."""

    def __init__(self, source: CudaBuffer) -> None:
        self._source, self._device = source, source.device
        self._pinned = _Memory(self._device.api, source.nbytes, pinned=True)
        self._event: _Event | None = None

    def start(self) -> None:
        self._device.enqueue_copy(self._pinned.address, self._source.address, self._source.nbytes, "DeviceToHost")
        self._event = self._device.mark()

    def result(self) -> Array:
        assert self._event is not None, "start() comes before result()"
        self._device.wait(self._event)
        data = ctypes.string_at(self._pinned.address, self._source.nbytes)
        return np.frombuffer(data, self._source.dtype).reshape(self._source.shape)


@dataclass(frozen=True)
class CudaDevice:
    """One GPU with a stream of its own.

    Attributes:
        index: of the GPU.
        api: ``cuda.bindings.runtime``, or what stands in for it.
        stream: address of the stream.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        EngineError: there is no such GPU.
    """

    index: int = 0
    api: Any = field(default_factory=lambda: require("cuda.bindings.runtime", "gpu"))
    kind: str = field(default="cuda", init=False)
    stream: int = field(init=False)

    def __post_init__(self) -> None:
        _checked(self.api, self.api.cudaSetDevice(self.index), f"opening GPU {self.index}")
        stream = int(_checked(self.api, self.api.cudaStreamCreate(), "creating a stream"))
        object.__setattr__(self, "stream", stream)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> CudaBuffer:
        nbytes = math.prod(shape) * dtype.itemsize
        memory = _Memory(self.api, nbytes, pinned=False)
        _checked(self.api, self.api.cudaMemsetAsync(memory.address, 0, nbytes, self.stream), "clearing memory")
        return CudaBuffer(self, memory, memory.address, shape, dtype)

    def copy(self, source: Buffer, target: Buffer) -> Call:
        if source.shape != target.shape or source.dtype != target.dtype:
            raise ValueError(f"{source.dtype} {source.shape} cannot be copied to {target.dtype} {target.shape}")

        def call() -> None:
            self.enqueue_copy(target.address, source.address, source.nbytes, "DeviceToDevice")

        return call

    def readback(self, source: Buffer) -> CudaReadback:
        assert isinstance(source, CudaBuffer)
        return CudaReadback(source)

    def mark(self) -> _Event:
        return _Event(self.api, self.stream)

    def milliseconds(self, start: object, stop: object) -> float:
        assert isinstance(start, _Event)
        assert isinstance(stop, _Event)
        self.wait(stop)
        return float(_checked(self.api, self.api.cudaEventElapsedTime(start.handle, stop.handle), "timing"))

    def wait(self, event: _Event) -> None:
        """Until the work before an event is done."""
        _checked(self.api, self.api.cudaEventSynchronize(event.handle), "waiting for the GPU")

    def synchronize(self) -> None:
        """Waits for all enqueued work."""
        _checked(self.api, self.api.cudaStreamSynchronize(self.stream), "waiting for the GPU")

    def enqueue_copy(self, target: int, source: int, nbytes: int, direction: str) -> None:
        """Copies between addresses; ``direction`` is ``HostToDevice``, ``DeviceToHost`` or ``DeviceToDevice``."""
        kind = getattr(self.api.cudaMemcpyKind, f"cudaMemcpy{direction}")
        _checked(self.api, self.api.cudaMemcpyAsync(target, source, nbytes, kind, self.stream), f"copying {direction}")


def _checked(api: Any, result: tuple[Any, ...], doing: str) -> Any:
    """The value of a CUDA call, which returns (status,) or (status, value)."""
    status, *value = result
    if status != api.cudaError_t.cudaSuccess:
        raise EngineError(f"CUDA failed {doing}: {getattr(status, 'name', status)}")
    return value[0] if value else None
