"""Buffers in an NVIDIA GPU's memory, and one stream on which everything runs in order.

Through NVIDIA's own bindings of the CUDA runtime. Nothing waits for the GPU but ``read``, ``Readback.result`` and
``milliseconds``, and allocating and freeing. Values from the host go through pinned memory, since a copy from
ordinary memory may first wait for the stream.

Generations on several threads share the device. Whoever enqueues takes a turn; while one thread records a graph, no
other can slip its work into the recording. What threads or the garbage collector drop meanwhile is freed afterwards.
"""

import ctypes
import functools
import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from adacache_engines.buffers import Array, Buffer, Call, in_turn
from adacache_engines.cuda_calls import checked
from adacache_engines.cuda_graphs import Recorded
from adacache_engines.errors import require


class CudaDevice:
    """One GPU with a stream of its own.

    Args:
        index: of the GPU.
        api: ``cuda.bindings.runtime``, or what stands in for it.
        graphs: record sequences of calls as CUDA graphs and replay them.

    Attributes:
        stream: address of the stream.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        EngineError: there is no such GPU.
    """

    kind = "cuda"

    def __init__(self, index: int = 0, api: Any = None, graphs: bool = True) -> None:
        self.index, self.graphs = index, graphs
        self.api = require("cuda.bindings.runtime", "gpu") if api is None else api
        self._lock = threading.RLock()
        self._recording = False
        self._dropped: deque[Callable[[], object]] = deque()
        self.use()
        # apart from the process's default stream, whose users must not be stopped by a recording, nor spoil it
        created = self.api.cudaStreamCreateWithFlags(self.api.cudaStreamNonBlocking)
        self.stream = int(checked(self.api, created, "creating a stream"))

    def compute_capability(self) -> str:
        """Such as ``8.9``."""
        kinds = self.api.cudaDeviceAttr
        parts = [
            checked(self.api, self.api.cudaDeviceGetAttribute(kind, self.index), f"asking GPU {self.index}")
            for kind in (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        ]
        return ".".join(map(str, parts))

    def use(self) -> None:
        """Makes it this thread's GPU, for libraries that take the current one."""
        checked(self.api, self.api.cudaSetDevice(self.index), f"opening GPU {self.index}")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, no other thread enqueues; turns may be taken within a turn."""
        with self._lock:
            self.use()
            self._sweep()
            yield

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> "CudaBuffer":
        nbytes = math.prod(shape) * dtype.itemsize
        memory = self.allocate(nbytes)
        with self.turn():
            checked(self.api, self.api.cudaMemsetAsync(memory.address, 0, nbytes, self.stream), "clearing memory")
        return CudaBuffer(self, memory, memory.address, shape, dtype)

    def allocate(self, nbytes: int, pinned: bool = False) -> "Memory":
        """Device memory as it is, or host memory that the GPU reads and writes."""
        with self.turn():
            return Memory(self, nbytes, pinned)

    def copy(self, source: Buffer, target: Buffer) -> Call:
        if source.shape != target.shape or source.dtype != target.dtype:
            raise ValueError(f"{source.dtype} {source.shape} cannot be copied to {target.dtype} {target.shape}")

        def call() -> None:
            self.enqueue_copy(target.address, source.address, source.nbytes, "DeviceToDevice")

        return call

    def readback(self, source: Buffer) -> "CudaReadback":
        assert isinstance(source, CudaBuffer)
        return CudaReadback(source)

    def sequence(self, calls: Sequence[Call], name: str = "calls") -> Call:
        return Recorded(self, calls, name) if self.graphs else in_turn(calls)

    def free_nbytes(self) -> int:
        with self.turn():
            status, free, _total = self.api.cudaMemGetInfo()
            return int(checked(self.api, (status, free), "asking for free memory"))

    def mark(self) -> "Event":
        with self.turn():
            return Event(self)

    def milliseconds(self, start: object, stop: object) -> float:
        assert isinstance(start, Event)
        assert isinstance(stop, Event)
        self.wait(stop)
        return float(checked(self.api, self.api.cudaEventElapsedTime(start.handle, stop.handle), "timing"))

    def wait(self, event: "Event") -> None:
        """Until the work before an event is done; others may enqueue meanwhile."""
        checked(self.api, self.api.cudaEventSynchronize(event.handle), "waiting for the GPU")

    def reached(self, event: "Event") -> bool:
        """Whether the work before an event is done, without waiting for it."""
        result = self.api.cudaEventQuery(event.handle)
        if result[0] == self.api.cudaError_t.cudaErrorNotReady:
            return False
        checked(self.api, result, "asking for an event")
        return True

    def synchronize(self) -> None:
        """Waits for all work enqueued so far."""
        self.wait(self.mark())

    def enqueue_copy(self, target: int, source: int, nbytes: int, direction: str) -> None:
        """Copies between addresses; ``direction`` is ``HostToDevice``, ``DeviceToHost`` or ``DeviceToDevice``."""
        kind = getattr(self.api.cudaMemcpyKind, f"cudaMemcpy{direction}")
        with self.turn():
            checked(
                self.api, self.api.cudaMemcpyAsync(target, source, nbytes, kind, self.stream), f"copying {direction}"
            )

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, nothing is freed."""
        with self.turn():
            self._recording = True
            try:
                yield
            finally:
                self._recording = False

    def drop(self, release: Callable[[], object]) -> None:
        """Frees something as soon as nothing is recorded; for finalisers, so on any thread and at any point.

        Never waits for another thread's turn, which could wait for what this thread holds.
        """
        self._dropped.append(release)
        if self._lock.acquire(blocking=False):
            try:
                self._sweep()
            finally:
                self._lock.release()

    def drop_when_idle(self, release: Callable[[], object]) -> None:
        """Like :meth:`drop`, after the work that is enqueued by then."""

        def wait_and_release() -> None:
            self.api.cudaStreamSynchronize(self.stream)
            release()

        self.drop(wait_and_release)

    def _sweep(self) -> None:
        while self._dropped and not self._recording:
            self._dropped.popleft()()


class CudaBuffer:
    """A tensor in device memory; ``owner`` is freed when the last buffer that shares it is gone."""

    def __init__(
        self, device: CudaDevice, owner: "Memory", address: int, shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        self.device, self.owner = device, owner
        self.address, self.shape, self.dtype = address, shape, dtype
        self.nbytes = math.prod(shape) * dtype.itemsize

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
        self.owner.staging(self.address, self.nbytes).send(np.ascontiguousarray(array))

    def read(self) -> Array:
        readback = CudaReadback(self)
        readback.start()
        return readback.result()


class Memory:
    """An allocation that is freed with this object, when the work on it is done.

    Attributes:
        address: in the device's address space, or the host's for pinned memory.
    """

    def __init__(self, device: CudaDevice, nbytes: int, pinned: bool = False) -> None:
        api = device.api
        allocate, release = (api.cudaMallocHost, api.cudaFreeHost) if pinned else (api.cudaMalloc, api.cudaFree)
        where = "pinned host memory" if pinned else "device memory"
        self.nbytes = nbytes
        self.address = int(checked(api, allocate(max(nbytes, 1)), f"allocating {nbytes} bytes of {where}"))
        self._device = device
        self._staging: dict[tuple[int, int], list[Staging]] = {}
        weakref.finalize(self, device.drop_when_idle, functools.partial(release, self.address))

    def staging(self, address: int, nbytes: int) -> "Staging":
        """A way from the host to a part of this memory, whose last values have left: a second one where they have not,
        so that nobody waits or writes over them.
        """
        ways = self._staging.setdefault((address, nbytes), [])
        for way in ways:
            if way.idle():
                return way
        ways.append(Staging(self._device, address, nbytes))
        return ways[-1]


class Event:
    """A point on the stream that is forgotten with this object."""

    def __init__(self, device: CudaDevice) -> None:
        api = device.api
        self.handle = checked(api, api.cudaEventCreate(), "creating an event")
        weakref.finalize(self, device.drop, functools.partial(api.cudaEventDestroy, self.handle))
        checked(api, api.cudaEventRecord(self.handle, device.stream), "recording an event")


class Staging:
    """Pinned host memory for a range of device memory, and copies between the two behind the enqueued work."""

    def __init__(self, device: CudaDevice, address: int, nbytes: int) -> None:
        self._device, self._address, self._nbytes = device, address, nbytes
        self._pinned = device.allocate(nbytes, pinned=True)
        self._copied: Event | None = None

    def idle(self) -> bool:
        """Whether the last copy was made."""
        return self._copied is None or self._device.reached(self._copied)

    def send(self, array: Array) -> None:
        """Enqueues the copy of a contiguous array, which may change afterwards; only while :meth:`idle`."""
        ctypes.memmove(self._pinned.address, array.ctypes.data, self._nbytes)
        self._copy(self._address, self._pinned.address, "HostToDevice")

    def fetch(self) -> None:
        """Enqueues the copy to the host."""
        self._copy(self._pinned.address, self._address, "DeviceToHost")

    def fetched(self) -> bytes:
        """Waits for the last ``fetch`` only."""
        assert self._copied is not None, "start() comes before result()"
        self._device.wait(self._copied)
        return ctypes.string_at(self._pinned.address, self._nbytes)

    def _copy(self, target: int, source: int, direction: str) -> None:
        with self._device.turn():
            self._device.enqueue_copy(target, source, self._nbytes, direction)
            self._copied = self._device.mark()


class CudaReadback:
    """Copies a buffer to pinned host memory behind the enqueued work; ``result`` waits for that copy only."""

    def __init__(self, source: CudaBuffer) -> None:
        self._source = source
        self._staging = Staging(source.device, source.address, source.nbytes)

    def start(self) -> None:
        self._staging.fetch()

    def result(self) -> Array:
        return np.frombuffer(self._staging.fetched(), self._source.dtype).reshape(self._source.shape)
