"""Buffers in an NVIDIA GPU's memory, and one stream on which everything runs in order.

Through NVIDIA's own bindings of the CUDA runtime. Nothing waits for the GPU but ``read``, ``Readback.result`` and
``milliseconds``, and allocating and freeing. Values from the host go through pinned memory, since a copy from
ordinary memory may first wait for the stream.

Generations on several threads share the device. Whoever enqueues takes a turn; while one thread records a graph, no
other can slip its work into the recording. What threads or the garbage collector drop meanwhile is freed afterwards.
"""

import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from adacache_engines.contract.device import Buffer, Call, in_turn
from adacache_engines.cuda.calls import checked
from adacache_engines.cuda.graphs import Recorded
from adacache_engines.cuda.memory import CudaBuffer, CudaReadback, Event, Memory
from adacache_engines.errors import EngineError, require


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
        self._dropped: _Dropped = deque()
        self._leaving: _Leaving = deque()
        self.use()
        # apart from the process's default stream, whose users must not be stopped by a recording, nor spoil it
        created = self.api.cudaStreamCreateWithFlags(self.api.cudaStreamNonBlocking)
        self.stream = int(checked(self.api, created, "creating a stream"))
        weakref.finalize(self, _close, self.api, self.stream, self._dropped, self._leaving)

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
        doing = f"opening GPU {self.index} (on a machine without one, --backend onnxruntime runs on the processor)"
        checked(self.api, self.api.cudaSetDevice(self.index), doing)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, no other thread enqueues; turns may be taken within a turn."""
        with self._lock:
            self.use()
            self._sweep()
            yield

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> CudaBuffer:
        nbytes = math.prod(shape) * dtype.itemsize
        memory = self.allocate(nbytes)
        with self.turn():
            checked(self.api, self.api.cudaMemsetAsync(memory.address, 0, nbytes, self.stream), "clearing memory")
        return CudaBuffer(self, memory, memory.address, shape, dtype)

    def allocate(self, nbytes: int, pinned: bool = False) -> Memory:
        """Device memory as it is, or host memory that the GPU reads and writes."""
        with self.turn():
            try:
                return Memory(self, nbytes, pinned)
            except EngineError:
                if self._recording or not self._leaving:
                    raise
            self.synchronize()  # what others dropped may be enough
            return Memory(self, nbytes, pinned)

    def copy(self, source: Buffer, target: Buffer) -> Call:
        if source.shape != target.shape or source.dtype != target.dtype:
            raise ValueError(f"{source.dtype} {source.shape} cannot be copied to {target.dtype} {target.shape}")

        def call() -> None:
            self.enqueue_copy(target.address, source.address, source.nbytes, "DeviceToDevice")

        return call

    def readback(self, source: Buffer) -> CudaReadback:
        assert isinstance(source, CudaBuffer)
        return CudaReadback(source)

    def sequence(self, calls: Sequence[Call], name: str = "calls") -> Call:
        return Recorded(self, calls, name) if self.graphs else in_turn(calls)

    def free_nbytes(self) -> int:
        if self._leaving or self._dropped:
            self.synchronize()
        with self.turn():
            status, free, _total = self.api.cudaMemGetInfo()
            return int(checked(self.api, (status, free), "asking for free memory"))

    def mark(self) -> Event:
        with self.turn():
            return Event(self)

    def milliseconds(self, start: object, stop: object) -> float:
        assert isinstance(start, Event)
        assert isinstance(stop, Event)
        self.wait(stop)
        return float(checked(self.api, self.api.cudaEventElapsedTime(start.handle, stop.handle), "timing"))

    def wait(self, event: Event) -> None:
        """Until the work before an event is done; others may enqueue meanwhile."""
        checked(self.api, self.api.cudaEventSynchronize(event.handle), "waiting for the GPU")

    def reached(self, event: Event) -> bool:
        """Whether the work before an event is done, without waiting for it."""
        return self._reached(event.handle)

    def _reached(self, handle: Any) -> bool:
        result = self.api.cudaEventQuery(handle)
        if result[0] == self.api.cudaError_t.cudaErrorNotReady:
            return False
        checked(self.api, result, "asking for an event")
        return True

    def synchronize(self) -> None:
        """Waits for all work enqueued so far, and frees what was dropped."""
        self.wait(self.mark())
        with self.turn():
            pass

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

    def drop(self, release: Callable[[], object], when_idle: bool = False) -> None:
        """Frees something as soon as nothing is recorded; for finalisers, so on any thread and at any point.

        Waits for nothing: neither for another thread's turn, which could wait for what this thread holds, nor, with
        ``when_idle``, for the work that is enqueued by then, behind which it is freed in a later turn.
        """
        self._dropped.append((release, when_idle))
        if self._lock.acquire(blocking=False):
            try:
                self._sweep()
            finally:
                self._lock.release()

    def _sweep(self) -> None:
        if self._recording:
            return
        behind = []
        while self._dropped:
            release, when_idle = self._dropped.popleft()
            if when_idle:
                behind.append(release)
            else:
                release()
        if behind:
            event = checked(self.api, self.api.cudaEventCreate(), "creating an event")
            checked(self.api, self.api.cudaEventRecord(event, self.stream), "recording an event")
            self._leaving.append((event, behind))
        while self._leaving and self._reached(self._leaving[0][0]):
            event, behind = self._leaving.popleft()
            self.api.cudaEventDestroy(event)
            for release in behind:
                release()


_Dropped = deque[tuple[Callable[[], object], bool]]
_Leaving = deque[tuple[Any, list[Callable[[], object]]]]  # an event, and what is freed behind it


def _close(api: Any, stream: int, dropped: _Dropped, leaving: _Leaving) -> None:
    """Frees what is left when the last user of a device is gone."""
    api.cudaStreamSynchronize(stream)
    for event, behind in leaving:
        api.cudaEventDestroy(event)
        for release in behind:
            release()
    for release, _ in dropped:
        release()
    api.cudaStreamDestroy(stream)
