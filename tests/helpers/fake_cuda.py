"""A stand-in for ``cuda.bindings.runtime`` that checks what a GPU would, and runs enqueued work only when waited for.

Device memory is at addresses of its own that are never used twice, so that every access can be checked when it runs.
A fault is what would be undefined or a sticky error on a GPU; it is raised where it is seen, and kept in ``faults``
for those seen in finalisers and threads. The real calls answer with a status; so do these.
"""

import ctypes
import enum
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

STREAM = 77
FIRST_ADDRESS = 0x10_0000_0000
ALIGNMENT = 512
POISON = 0xFF  # of memory that nobody has written: NaN as a float

Bytes = NDArray[np.uint8]
Operation = Callable[[], None]


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidDevice = 101
    cudaErrorNotReady = 600
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorCapturedEvent = 907


class Fault(AssertionError):
    """A fault that a GPU would not report, or would report elsewhere."""


@dataclass(eq=False)
class Block:
    address: int
    data: Bytes
    pinned: bool
    freed: bool = False
    held: Any = None  # keeps pinned memory where it is

    def __len__(self) -> int:
        return len(self.data)


@dataclass(eq=False)
class Event:
    done: bool = False
    recorded: bool = False
    captured: bool = False


@dataclass(eq=False)
class Reach:
    """The work that an event is."""

    event: Event

    def __call__(self) -> None:
        self.event.done = True


@dataclass(eq=False)
class Graph:
    operations: list[Operation]
    destroyed: bool = False


@dataclass
class FakeCuda:
    """The part of ``cuda.bindings.runtime`` that is used.

    Attributes:
        capacity: bytes of device memory.
        blocks: live allocations by address, of pinned memory too.
        queue: what is enqueued and has not run.
        waits: calls that waited for the GPU because they were asked to.
        stalls: calls that a GPU may let wait for it, on the way.
        peak_nbytes: most device memory at once.
        stepping: a wait or stall now is a fault.
        launches, captures: numbers of graphs that were launched and recorded.
        kernels: names of what ran, in order.
    """

    capacity: int = 1 << 20
    capability: tuple[int, int] = (8, 9)
    pause_s: float = 0.0  # in the middle of a capture, for other threads to come between
    blocks: dict[int, Block] = field(default_factory=dict)
    queue: list[Operation] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)
    waits: int = 0
    stalls: int = 0
    peak_nbytes: int = 0
    stepping: bool = False
    launches: int = 0
    captures: int = 0
    graphs: list[Graph] = field(default_factory=list)

    cudaError_t: Any = Status
    cudaStreamNonBlocking: int = 1
    cudaMemcpyKind: Any = field(
        default_factory=lambda: SimpleNamespace(
            cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
        )
    )
    cudaStreamCaptureMode: Any = field(
        default_factory=lambda: SimpleNamespace(
            cudaStreamCaptureModeGlobal=0, cudaStreamCaptureModeThreadLocal=1, cudaStreamCaptureModeRelaxed=2
        )
    )
    cudaDeviceAttr: Any = field(
        default_factory=lambda: SimpleNamespace(
            cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76
        )
    )

    def __post_init__(self) -> None:
        self._addresses = itertools.count(FIRST_ADDRESS, 1 << 28)
        self._lock = threading.RLock()
        self._capture: list[Operation] | None = None
        self._capturer = 0
        self._invalidated = False
        self._devices = threading.local()
        self._all: list[Block] = []

    # memory, as work on the stream sees it

    def device_nbytes(self) -> int:
        return sum(len(block) for block in self.blocks.values() if not block.pinned)

    def memory(self, address: int, nbytes: int, what: str) -> Bytes:
        """Live memory, checked."""
        for block in self._all:
            if block.address <= address < block.address + max(len(block), 1):
                if block.freed:
                    self.fault(f"{what} touches memory that was freed")
                start = address - block.address
                if start + nbytes > len(block):
                    self.fault(f"{what} goes {start + nbytes - len(block)} bytes beyond its memory")
                return block.data[start : start + nbytes]
        return self.fault(f"{what} touches {address:#x}, which was never allocated")

    def fault(self, what: str) -> Any:
        self.faults.append(what)
        raise Fault(what)

    def _block(self, address: int) -> Block | None:
        return next((b for b in self._all if b.address <= address < b.address + max(len(b), 1)), None)

    # the stream

    def enqueue(self, stream: int, operation: Operation, what: str) -> None:
        """Work of any library on the stream."""
        with self._lock:
            if stream != STREAM:
                self.fault(f"{what} is on another stream")
            if getattr(self._devices, "index", None) != 0:
                self.fault(f"{what}: this thread has not chosen its GPU")
            if self._capture is None:
                self.queue.append(operation)
                return
            if self._capturer != threading.get_ident():
                self.fault(f"{what} comes from another thread than the one that captures")
            self._capture.append(operation)

    def capturing(self) -> bool:
        return self._capture is not None

    def _run_all(self) -> None:
        while self.queue:
            self.queue.pop(0)()

    def _waiting(self, stall: bool, what: str) -> None:
        if stall:
            self.stalls += 1
        else:
            self.waits += 1
        if self.stepping:
            self.fault(f"{what} inside a step")

    def _prohibited(self, stream_wide: bool = False) -> bool:
        """Whether a capture forbids the call, which then spoils it."""
        if self._capture is None or not (stream_wide or self._capturer == threading.get_ident()):
            return False
        self._invalidated = True
        return True

    def cudaSetDevice(self, index: int) -> tuple[Status]:
        if index != 0:
            return (Status.cudaErrorInvalidDevice,)
        self._devices.index = index
        return (Status.cudaSuccess,)

    def cudaDeviceGetAttribute(self, kind: int, index: int) -> tuple[Status, int]:
        return Status.cudaSuccess, self.capability[kind - 75]

    def cudaMemGetInfo(self) -> tuple[Status, int, int]:
        return Status.cudaSuccess, self.capacity - self.device_nbytes(), self.capacity

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Status, int]:
        assert flags == self.cudaStreamNonBlocking
        return Status.cudaSuccess, STREAM

    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:
        assert stream == STREAM
        assert self.queue == []
        return (Status.cudaSuccess,)

    def cudaMalloc(self, nbytes: int) -> tuple[Status, int]:
        with self._lock:
            if self._prohibited():
                return Status.cudaErrorStreamCaptureUnsupported, 0
            if self.device_nbytes() + nbytes > self.capacity:
                return Status.cudaErrorMemoryAllocation, 0
            block = Block(next(self._addresses), np.full(nbytes, POISON, np.uint8), pinned=False)
            return Status.cudaSuccess, self._allocated(block)

    def cudaMallocHost(self, nbytes: int) -> tuple[Status, int]:
        with self._lock:
            if self._prohibited():
                return Status.cudaErrorStreamCaptureUnsupported, 0
            self._waiting(True, "pinning memory")
            held = ctypes.create_string_buffer(nbytes)
            data = np.frombuffer(held, np.uint8)
            data[:] = POISON
            return Status.cudaSuccess, self._allocated(Block(ctypes.addressof(held), data, pinned=True, held=held))

    def _allocated(self, block: Block) -> int:
        self.blocks[block.address] = block
        self.peak_nbytes = max(self.peak_nbytes, self.device_nbytes())
        self._all.insert(0, block)
        return block.address

    def cudaFree(self, address: int) -> tuple[Status]:
        with self._lock:
            if self._prohibited():
                self.fault("memory is freed inside a capture")
            self._waiting(True, "freeing memory")
            self._run_all()
            block = self.blocks.pop(address)
            block.freed = True
            return (Status.cudaSuccess,)

    cudaFreeHost = cudaFree

    def cudaMemsetAsync(self, address: int, value: int, nbytes: int, stream: int) -> tuple[Status]:
        def clear() -> None:
            self.memory(address, nbytes, "clearing")[:] = value

        self.enqueue(stream, clear, "clearing")
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, target: int, source: int, nbytes: int, kind: int, stream: int) -> tuple[Status]:
        with self._lock:
            host = {1: source, 2: target}.get(kind)
            if host is not None and self._block(host) is None:
                if self._prohibited():
                    return (Status.cudaErrorStreamCaptureUnsupported,)
                self._waiting(True, "a copy of ordinary memory")
                self._run_all()
                ctypes.memmove(*(self._pointer(address, nbytes) for address in (target, source)), nbytes)
                return (Status.cudaSuccess,)
            for name, address, device in (("from", source, kind != 1), ("to", target, kind != 2)):
                block = self._block(address)
                if block is None or block.pinned == device:
                    self.fault(f"a copy of kind {kind} goes {name} the wrong kind of memory")
            if kind == 2:
                # who reads before the copy ran does not see last time's values
                self.memory(target, nbytes, "a copy to the host")[:] = POISON
            before = self.memory(source, nbytes, "a copy").copy() if kind == 1 else None

            def copy() -> None:
                data = self.memory(source, nbytes, "a copy")
                if before is not None and not np.array_equal(before, data):
                    self.fault("host memory was changed before its copy ran")
                self.memory(target, nbytes, "a copy")[:] = data

            self.enqueue(stream, copy, "a copy")
            return (Status.cudaSuccess,)

    def _pointer(self, address: int, nbytes: int) -> int:
        if self._block(address) is None:
            return address
        return int(self.memory(address, nbytes, "a copy").ctypes.data)

    # events

    def cudaEventCreate(self) -> tuple[Status, Event]:
        return Status.cudaSuccess, Event()

    def cudaEventDestroy(self, event: Event) -> tuple[Status]:
        return (Status.cudaSuccess,)

    def cudaEventRecord(self, event: Event, stream: int) -> tuple[Status]:
        with self._lock:
            event.recorded, event.done, event.captured = True, False, self._capture is not None
            self.enqueue(stream, Reach(event), "an event")
            return (Status.cudaSuccess,)

    def cudaEventSynchronize(self, event: Event) -> tuple[Status]:
        with self._lock:
            if event.captured:
                return (Status.cudaErrorCapturedEvent,)
            if self._prohibited():
                return (Status.cudaErrorStreamCaptureUnsupported,)
            assert event.recorded
            self._waiting(False, "waiting for an event")
            while not event.done:
                self.queue.pop(0)()
            return (Status.cudaSuccess,)

    def cudaEventQuery(self, event: Event) -> tuple[Status]:
        with self._lock:
            if event.captured:
                return (Status.cudaErrorCapturedEvent,)
            if self._prohibited():
                return (Status.cudaErrorStreamCaptureUnsupported,)
            assert event.recorded
            while self.queue and isinstance(self.queue[0], Reach):  # no work before it
                self.queue.pop(0)()
            return (Status.cudaSuccess if event.done else Status.cudaErrorNotReady,)

    def cudaEventElapsedTime(self, start: Event, stop: Event) -> tuple[Status, float]:
        if start.captured or stop.captured:
            return Status.cudaErrorCapturedEvent, 0.0
        assert start.done
        assert stop.done
        return Status.cudaSuccess, 1.5

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        with self._lock:
            if self._prohibited(stream_wide=True):
                self.fault("waiting for a stream that captures")
            self._waiting(False, "waiting for the stream")
            self._run_all()
            return (Status.cudaSuccess,)

    # graphs

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Status]:
        with self._lock:
            assert stream == STREAM
            if self._capture is not None:
                self.fault("a capture begins inside a capture")
            if mode != self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal:
                self.fault("a capture that stops the other threads, or that lets this one do anything")
            self._capture, self._capturer, self._invalidated = [], threading.get_ident(), False
        time.sleep(self.pause_s)
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Status, Graph | None]:
        with self._lock:
            assert self._capture is not None
            if self._capturer != threading.get_ident():
                self.fault("a capture ends on another thread")
            operations, self._capture = self._capture, None
            if self._invalidated:
                return Status.cudaErrorStreamCaptureInvalidated, None
            self.captures += 1
            self.graphs.append(Graph(operations))
            return Status.cudaSuccess, self.graphs[-1]

    def cudaGraphInstantiate(self, graph: Graph, flags: int) -> tuple[Status, Graph]:
        assert flags == 0
        self.graphs.append(Graph(list(graph.operations)))
        return Status.cudaSuccess, self.graphs[-1]

    def cudaGraphLaunch(self, graph: Graph, stream: int) -> tuple[Status]:
        with self._lock:
            if graph.destroyed:
                self.fault("a destroyed graph is launched")
            if self._capture is not None:
                self.fault("a graph is launched inside a capture")
            self.launches += 1
            for operation in graph.operations:
                self.enqueue(stream, operation, "a graph")
            return (Status.cudaSuccess,)

    def cudaGraphDestroy(self, graph: Graph) -> tuple[Status]:
        graph.destroyed = True
        self.graphs.remove(graph)
        return (Status.cudaSuccess,)

    cudaGraphExecDestroy = cudaGraphDestroy

    # for libraries that run kernels

    def launch(
        self,
        stream: int,
        name: str,
        reads: Sequence[tuple[int, int]],
        writes: Sequence[tuple[int, int]],
        function: Callable[[Sequence[Bytes], Sequence[Bytes]], None],
        scratch: tuple[int, int] | None = None,
    ) -> None:
        """Enqueues a kernel over ranges (address, bytes); what was in ``scratch`` is lost."""

        def run() -> None:
            inputs = [self.memory(*range_, name).copy() for range_ in reads]
            outputs = [self.memory(*range_, name) for range_ in writes]
            if scratch is not None:
                self.memory(*scratch, f"the scratch memory of {name}")[:] = 0xAB
            self.kernels.append(name)
            function(inputs, outputs)

        self.enqueue(stream, run, name)
