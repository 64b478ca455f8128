"""A stand-in for ``cuda.bindings.runtime`` that checks what a GPU would, and runs enqueued work only when waited for.

Device memory is at addresses of its own that are never used twice, so that every access can be checked when it runs.
A fault is what is undefined on a GPU, or forbidden by CUDA's documentation without an error that says so; it is raised
where it is seen, and kept in ``faults`` for those seen in finalisers and threads. Everything else that CUDA refuses is
answered with its status, as the real calls do, and the status also stays behind as the thread's last error.
"""

import ctypes
import enum
import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIRST_STREAM = 77
FIRST_ADDRESS = 0x10_0000_0000
POISON = 0xFF  # of memory that nobody has written: NaN as a float

Bytes = NDArray[np.uint8]
Range = tuple[int, int]  # address and bytes


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorCapturedEvent = 907


OK = (Status.cudaSuccess,)
STICKY = (Status.cudaErrorIllegalAddress,)


class CaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class Fault(AssertionError):
    """A fault that a GPU would not report, or would report elsewhere."""


class Handle(int):
    """A stream's handle, whose address is asked for as cuda-bindings 12.9.1 wants it."""

    def __int__(self) -> int:
        raise Fault("int() of a CUDA handle is deprecated: cuda.bindings.utils.get_cuda_native_handle")


@dataclass(eq=False)
class Block:
    address: int
    data: Bytes
    pinned: bool
    device: int = 0
    freed: bool = False
    held: Any = None  # keeps pinned memory where it is

    def __len__(self) -> int:
        return len(self.data)


@dataclass(eq=False)
class Event:
    device: int = 0
    timed: bool = True
    done: bool = True  # an event that was never recorded is no work at all
    recorded: bool = False
    captured: bool = False
    destroyed: bool = False


@dataclass(eq=False)
class Operation:
    """Work on a stream: ``ranges`` are what it touches, ``event`` is what it reaches."""

    run: Callable[[], None]
    what: str
    ranges: tuple[Range, ...] = ()
    event: Event | None = None


@dataclass(eq=False)
class Graph:
    operations: list[Operation]
    executable: bool = False
    destroyed: bool = False


@dataclass(eq=False)
class StreamState:
    """A stream; ``captured`` is what a capture has seen so far, None outside of one."""

    device: int
    queue: list[Operation] = field(default_factory=list)
    captured: list[Operation] | None = None
    capturer: int = 0
    invalidated: bool = False
    destroyed: bool = False


def api_call(values: int = 0) -> Callable[[Any], Any]:
    """A call of the runtime that returns a status and so many values.

    Finalisers may run before and after it, as the garbage collector pleases. When the device is broken it fails, as
    every other call does from then on.
    """

    def decorate(method: Any) -> Any:
        @functools.wraps(method)
        def called(self: "FakeCuda", *arguments: Any) -> tuple[Any, ...]:
            self._finalise()
            with self._lock:
                result = method(self, *arguments) if self.broken is None else OK
                if self.broken is not None:
                    result = (self.broken, *(None,) * values)
                if result[0] != Status.cudaSuccess:
                    self._thread.last_error = result[0]
            self._finalise()
            return tuple(result)

        return called

    return decorate


class PerThread(threading.local):
    """The state that CUDA keeps for each thread: current device, capture mode and last error."""

    device: int | None = None
    mode = CaptureMode.cudaStreamCaptureModeGlobal
    last_error = Status.cudaSuccess
    finalising = False


@dataclass
class FakeCuda:
    """The part of ``cuda.bindings.runtime`` that is used.

    Attributes:
        capacity: bytes of memory of each device.
        capability: compute capability of the devices.
        devices: number of devices.
        blocks: live allocations by address, of pinned memory too.
        waits: calls that waited for the GPU because they were asked to.
        stalls: calls that a GPU may let wait for it, on the way.
        pins: allocations of pinned memory so far.
        peak_nbytes: most device memory at once.
        stepping: a wait or stall now is a fault.
        launches, captures: numbers of graphs that were launched and recorded.
        kernels: names of what ran, in order.
        graphs: graphs that are not destroyed.
        finaliser: runs before and after every call, on the thread that makes it.
        crash: status with which the next enqueued work breaks the device, when it runs.
        broken: status that every call returns once ``crash`` has broken the device; None until then.
    """

    capacity: int = 1 << 20
    capability: tuple[int, int] = (8, 9)
    devices: int = 1
    pause_s: float = 0.0  # in the middle of a capture, for other threads to come between
    blocks: dict[int, Block] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)
    waits: int = 0
    stalls: int = 0
    pins: int = 0
    peak_nbytes: int = 0
    stepping: bool = False
    launches: int = 0
    captures: int = 0
    graphs: list[Graph] = field(default_factory=list)
    finaliser: Callable[[], None] | None = None
    crash: Status | None = None
    broken: Status | None = None

    cudaError_t: Any = Status
    cudaStreamNonBlocking: int = 1
    cudaEventDisableTiming: int = 2
    cudaEventRecordExternal: int = 1
    cudaStreamCaptureMode: Any = CaptureMode
    cudaMemcpyKind: Any = field(
        default_factory=lambda: SimpleNamespace(
            cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
        )
    )
    cudaDeviceAttr: Any = field(
        default_factory=lambda: SimpleNamespace(
            cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76
        )
    )

    def __post_init__(self) -> None:
        self._addresses = itertools.count(FIRST_ADDRESS, 1 << 28)
        self._handles = itertools.count(FIRST_STREAM)
        self._lock = threading.RLock()
        self._thread = PerThread()
        self._streams: dict[int, StreamState] = {}
        self._all: list[Block] = []

    # memory, as work on the stream sees it

    def device_nbytes(self, device: int = 0) -> int:
        return sum(len(block) for block in self.blocks.values() if not block.pinned and block.device == device)

    def pinned_nbytes(self) -> int:
        return sum(len(block) for block in self.blocks.values() if block.pinned)

    def memory(self, address: int, nbytes: int, what: str) -> Bytes:
        """Live memory, checked."""
        block = self._block(address)
        if block is None:
            return self.fault(f"{what} touches {address:#x}, which was never allocated")
        if block.freed:
            self.fault(f"{what} touches memory that was freed")
        start = address - block.address
        if start + nbytes > len(block):
            self.fault(f"{what} goes {start + nbytes - len(block)} bytes beyond its memory")
        return block.data[start : start + nbytes]

    def fault(self, what: str) -> Any:
        self.faults.append(what)
        raise Fault(what)

    def _block(self, address: int) -> Block | None:
        return next((b for b in self._all if b.address <= address < b.address + max(len(b), 1)), None)

    # streams

    @property
    def queue(self) -> list[Operation]:
        """The operations that are enqueued on all streams and have not run."""
        return [operation for stream in self._streams.values() for operation in stream.queue]

    def enqueue(
        self,
        stream: int,
        run: Callable[[], None],
        what: str,
        ranges: Sequence[Range] = (),
        event: Event | None = None,
    ) -> Status:
        """Work of any library on a stream."""
        with self._lock:
            state = self._stream(stream, what)
            if self._thread.device is None:
                self.fault(f"{what}: this thread has not chosen its GPU")
            operation = Operation(run, what, tuple(ranges), event)
            if state.captured is None:
                state.queue.append(operation)
                return Status.cudaSuccess
            if state.capturer != threading.get_ident():
                self.fault(f"{what} comes from another thread than the one that captures")
            if state.invalidated:
                return Status.cudaErrorStreamCaptureInvalidated
            state.captured.append(operation)
            return Status.cudaSuccess

    def capturing(self) -> bool:
        return any(stream.captured is not None for stream in self._streams.values())

    def _stream(self, handle: int, what: str) -> StreamState:
        state = self._streams.get(handle)
        if state is None:
            return self.fault(f"{what} is on another stream")
        if state.destroyed:
            self.fault(f"{what} is on a stream that was destroyed")
        return state

    def _run(self, state: StreamState) -> None:
        """Run the first operation of a stream."""
        if self.crash is not None and state.queue[0].event is None:
            self.broken, self.crash = self.crash, None
        if self.broken is not None:  # nothing runs any more
            for stream in self._streams.values():
                stream.queue.clear()
            return
        operation = state.queue.pop(0)
        operation.run()
        if operation.event is not None:
            operation.event.done = True

    def _run_all(self, device: int | None = None) -> None:
        for state in self._streams.values():
            while state.queue and device in (None, state.device):
                self._run(state)

    def _waiting(self, stall: bool, what: str) -> None:
        if stall:
            self.stalls += 1
        else:
            self.waits += 1
        if self.stepping:
            self.fault(f"{what} inside a step")

    def _prohibited(self) -> bool:
        """Whether a capture of this thread forbids a call that is not part of it, and which then spoils it."""
        if self._thread.mode == CaptureMode.cudaStreamCaptureModeRelaxed:
            return False
        own = [
            stream
            for stream in self._streams.values()
            if stream.captured is not None and stream.capturer == threading.get_ident()
        ]
        for stream in own:
            stream.invalidated = True
        return bool(own)

    def _finalise(self) -> None:
        if self.finaliser is None or self._thread.finalising:
            return
        self._thread.finalising = True
        try:
            self.finaliser()
        finally:
            self._thread.finalising = False

    @property
    def _current(self) -> int:
        return self._thread.device or 0

    # errors and devices

    def cudaGetLastError(self) -> tuple[Status]:
        error = self._thread.last_error if self.broken is None else self.broken
        self._thread.last_error = Status.cudaSuccess
        return (error,)

    def cudaSetDevice(self, index: int) -> tuple[Status]:
        """Choose the device, even when it is broken."""
        if not 0 <= index < self.devices:
            self._thread.last_error = Status.cudaErrorInvalidDevice
            return (Status.cudaErrorInvalidDevice,)
        self._thread.device = index
        return OK

    def cudaGetDevice(self) -> tuple[Status, int]:
        return Status.cudaSuccess, self._current

    @api_call(1)
    def cudaGetDeviceProperties(self, index: int) -> tuple[Status, Any]:
        return Status.cudaSuccess, SimpleNamespace(name=b"NVIDIA Faked")

    def cudaDeviceGetAttribute(self, kind: int, index: int) -> tuple[Status, int]:
        return Status.cudaSuccess, self.capability[kind - 75]

    @api_call(2)
    def cudaMemGetInfo(self) -> tuple[Status, int, int]:
        return Status.cudaSuccess, self.capacity - self.device_nbytes(self._current), self.capacity

    @api_call(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Status, Handle]:
        assert flags == self.cudaStreamNonBlocking
        handle = Handle(next(self._handles))
        self._streams[handle] = StreamState(self._current)
        return Status.cudaSuccess, handle

    @api_call()
    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:
        state = self._stream(stream, "destroying it")
        if state.captured is not None:
            self.fault("a stream that captures is destroyed")
        if state.queue:
            self.fault(f"a stream is destroyed before {state.queue[0].what} has run")
        state.destroyed = True
        return OK

    @api_call()
    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        state = self._stream(stream, "waiting for it")
        if state.captured is not None:
            state.invalidated = True
            return (Status.cudaErrorStreamCaptureUnsupported,)
        if self._prohibited():
            return (Status.cudaErrorStreamCaptureUnsupported,)
        self._waiting(False, "waiting for the stream")
        while state.queue:
            self._run(state)
        return OK

    # allocations

    @api_call(1)
    def cudaMalloc(self, nbytes: int) -> tuple[Status, int | None]:
        if self._prohibited():
            return Status.cudaErrorStreamCaptureUnsupported, None
        if self.device_nbytes(self._current) + nbytes > self.capacity:
            return Status.cudaErrorMemoryAllocation, None
        data = np.full(nbytes, POISON, np.uint8)
        return Status.cudaSuccess, self._allocated(Block(next(self._addresses), data, False, self._current))

    @api_call(1)
    def cudaMallocHost(self, nbytes: int) -> tuple[Status, int | None]:
        if self._prohibited():
            return Status.cudaErrorStreamCaptureUnsupported, None
        self._waiting(True, "pinning memory")
        self.pins += 1
        held = ctypes.create_string_buffer(nbytes)
        data = np.frombuffer(held, np.uint8)
        data[:] = POISON
        block = Block(ctypes.addressof(held), data, True, self._current, held=held)
        return Status.cudaSuccess, self._allocated(block)

    def _allocated(self, block: Block) -> int:
        self.blocks[block.address] = block
        self.peak_nbytes = max(self.peak_nbytes, self.device_nbytes(self._current))
        self._all.insert(0, block)
        return block.address

    @api_call()
    def cudaFree(self, address: int) -> tuple[Status]:
        return self._free(address, pinned=False)

    @api_call()
    def cudaFreeHost(self, address: int) -> tuple[Status]:
        return self._free(address, pinned=True)

    def _free(self, address: int, pinned: bool) -> tuple[Status]:
        if self._prohibited():
            self.fault("memory is freed inside a capture")
        block = self.blocks.get(address)
        if block is None or block.pinned != pinned:
            return (Status.cudaErrorInvalidValue,)
        for operation in self.queue:
            if any(_overlap(range_, (address, len(block))) for range_ in operation.ranges):
                self.fault(f"memory is freed before {operation.what}, which is enqueued, has used it")
        self._waiting(True, "freeing memory")
        self._run_all(block.device)
        del self.blocks[address]
        block.freed = True
        if pinned:
            self._all.remove(block)  # the host may give the address to somebody else
        return OK

    # copies

    @api_call()
    def cudaMemsetAsync(self, address: int, value: int, nbytes: int, stream: int) -> tuple[Status]:
        def clear() -> None:
            self.memory(address, nbytes, "clearing")[:] = value

        if self._stream(stream, "clearing").device != self._current:
            return (Status.cudaErrorInvalidResourceHandle,)
        return (self.enqueue(stream, clear, "clearing", [(address, nbytes)]),)

    @api_call()
    def cudaMemcpyAsync(self, target: int, source: int, nbytes: int, kind: int, stream: int) -> tuple[Status]:
        host = {1: source, 2: target}.get(kind)
        if host is not None and self._block(host) is None:
            if self._prohibited():
                return (Status.cudaErrorStreamCaptureUnsupported,)
            self._waiting(True, "a copy of ordinary memory")
            self._run_all()
            ctypes.memmove(*(self._pointer(address, nbytes) for address in (target, source)), nbytes)
            return OK
        for name, address, on_device in (("from", source, kind != 1), ("to", target, kind != 2)):
            block = self._block(address)
            if nbytes and (block is None or block.pinned == on_device):
                self.fault(f"a copy of kind {kind} goes {name} the wrong kind of memory")
        if _overlap((source, nbytes), (target, nbytes)):
            self.fault("a copy overlaps its source")
        if kind == 2 and nbytes:
            # who reads before the copy ran does not see last time's values
            self.memory(target, nbytes, "a copy to the host")[:] = POISON
        before = self.memory(source, nbytes, "a copy").copy() if kind == 1 and nbytes and not self.capturing() else None

        def copy() -> None:
            if not nbytes:
                return
            data = self.memory(source, nbytes, "a copy")
            if before is not None and not np.array_equal(before, data):
                self.fault("host memory was changed before its copy ran")
            self.memory(target, nbytes, "a copy")[:] = data

        return (self.enqueue(stream, copy, "a copy", [(source, nbytes), (target, nbytes)]),)

    def _pointer(self, address: int, nbytes: int) -> int:
        if self._block(address) is None:
            return address
        return int(self.memory(address, nbytes, "a copy").ctypes.data)

    # events

    @api_call(1)
    def cudaEventCreate(self) -> tuple[Status, Event]:
        return Status.cudaSuccess, Event(self._current)

    @api_call(1)
    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Status, Event]:
        assert flags in (0, self.cudaEventDisableTiming)
        return Status.cudaSuccess, Event(self._current, timed=not flags)

    @api_call()
    def cudaEventDestroy(self, event: Event) -> tuple[Status]:
        self._living(event)
        event.destroyed = True
        return OK

    @api_call()
    def cudaEventRecord(self, event: Event, stream: int) -> tuple[Status]:
        return self._record(event, stream, external=False)

    @api_call()
    def cudaEventRecordWithFlags(self, event: Event, stream: int, flags: int) -> tuple[Status]:
        """Inside a capture, with the flag for it, an event that each launch of the graph records."""
        if flags and not self.capturing():
            return (Status.cudaErrorInvalidValue,)
        return self._record(event, stream, external=bool(flags))

    def _record(self, event: Event, stream: int, external: bool) -> tuple[Status]:
        self._living(event)
        state = self._stream(stream, "an event")
        if event.device != state.device:
            return (Status.cudaErrorInvalidResourceHandle,)
        captured = state.captured is not None
        if not external:
            event.captured = captured
        if not captured:
            event.recorded, event.done = True, False
        return (self.enqueue(stream, lambda: None, "an event", event=event),)

    @api_call()
    def cudaEventSynchronize(self, event: Event) -> tuple[Status]:
        self._living(event)
        if event.captured:
            return (Status.cudaErrorCapturedEvent,)
        if self._prohibited():
            return (Status.cudaErrorStreamCaptureUnsupported,)
        self._waiting(False, "waiting for an event")
        for state in self._streams.values():
            while any(operation.event is event for operation in state.queue):
                self._run(state)
        return OK

    @api_call()
    def cudaEventQuery(self, event: Event) -> tuple[Status]:
        self._living(event)
        if event.captured:
            return (Status.cudaErrorCapturedEvent,)
        if self._prohibited():
            return (Status.cudaErrorStreamCaptureUnsupported,)
        for state in self._streams.values():
            while state.queue and state.queue[0].event is not None:  # no work before it
                self._run(state)
        return OK if event.done else (Status.cudaErrorNotReady,)

    @api_call(1)
    def cudaEventElapsedTime(self, start: Event, stop: Event) -> tuple[Status, float | None]:
        for event in (start, stop):
            self._living(event)
            if event.captured:
                return Status.cudaErrorCapturedEvent, None
            if not (event.recorded and event.timed):
                return Status.cudaErrorInvalidResourceHandle, None
            if not event.done:
                return Status.cudaErrorNotReady, None
        return Status.cudaSuccess, 1.5

    def _living(self, event: Event) -> None:
        if event.destroyed:
            self.fault("an event is used after it was destroyed")

    # graphs

    def cudaThreadExchangeStreamCaptureMode(self, mode: CaptureMode) -> tuple[Status, CaptureMode]:
        before, self._thread.mode = self._thread.mode, mode
        return Status.cudaSuccess, before

    def cudaStreamBeginCapture(self, stream: int, mode: CaptureMode) -> tuple[Status]:
        result: tuple[Status] = self._begin_capture(stream, mode)
        if self.pause_s:
            time.sleep(self.pause_s)
        return result

    @api_call()
    def _begin_capture(self, stream: int, mode: CaptureMode) -> tuple[Status]:
        state = self._stream(stream, "a capture")
        if state.captured is not None:
            self.fault("a capture begins inside a capture")
        if mode != CaptureMode.cudaStreamCaptureModeThreadLocal:
            self.fault("a capture that stops the other threads, or that lets this one do anything")
        state.captured, state.capturer, state.invalidated = [], threading.get_ident(), False
        return OK

    @api_call(1)
    def cudaStreamEndCapture(self, stream: int) -> tuple[Status, Graph | None]:
        state = self._stream(stream, "the end of a capture")
        if state.captured is None:
            return Status.cudaErrorInvalidValue, None
        if state.capturer != threading.get_ident():
            self.fault("a capture ends on another thread")
        operations, state.captured = state.captured, None
        if state.invalidated:
            return Status.cudaErrorStreamCaptureInvalidated, None
        self.captures += 1
        self.graphs.append(Graph(operations))
        return Status.cudaSuccess, self.graphs[-1]

    @api_call(1)
    def cudaGraphInstantiate(self, graph: Graph, flags: int) -> tuple[Status, Graph]:
        assert flags == 0
        self.graphs.append(Graph(list(graph.operations), executable=True))
        return Status.cudaSuccess, self.graphs[-1]

    @api_call()
    def cudaGraphLaunch(self, graph: Graph, stream: int) -> tuple[Status]:
        state = self._stream(stream, "a graph")
        if graph.destroyed or not graph.executable:
            self.fault(
                "a destroyed graph is launched" if graph.destroyed else "a graph is launched, not its executable"
            )
        if state.captured is not None:
            self.fault("a graph is launched inside a capture")
        self.launches += 1
        for operation in graph.operations:
            if operation.event is not None:
                operation.event.recorded, operation.event.done = True, False
            self.enqueue(stream, operation.run, operation.what, operation.ranges, operation.event)
        return OK

    @api_call()
    def cudaGraphDestroy(self, graph: Graph) -> tuple[Status]:
        return self._destroy(graph, executable=False)

    @api_call()
    def cudaGraphExecDestroy(self, graph: Graph) -> tuple[Status]:
        """Destroy a graph, possibly before a launch has run: CUDA frees it once the launch is over."""
        return self._destroy(graph, executable=True)

    def _destroy(self, graph: Graph, executable: bool) -> tuple[Status]:
        if graph.destroyed or graph.executable != executable:
            self.fault("a graph is destroyed twice, or as what it is not")
        graph.destroyed = True
        self.graphs.remove(graph)
        return OK

    # for libraries that run kernels

    def launch(
        self,
        stream: int,
        name: str,
        reads: Sequence[Range],
        writes: Sequence[Range],
        function: Callable[[Sequence[Bytes], Sequence[Bytes]], None],
        scratch: Range | None = None,
    ) -> Status:
        """Enqueues a kernel over ranges; what was in ``scratch`` is lost.

        Whether an output may be where an input is depends on the kernel, and is for the library to say.
        """

        def run() -> None:
            inputs = [self.memory(*range_, name).copy() for range_ in reads]
            outputs = [self.memory(*range_, name) for range_ in writes]
            if scratch is not None:
                self.memory(*scratch, f"the scratch memory of {name}")[:] = 0xAB
            self.kernels.append(name)
            function(inputs, outputs)

        for fault in self._misuse(reads, writes):
            self.fault(f"{name} {fault}")
        if self._stream(stream, name).device != self._current:
            return Status.cudaErrorInvalidResourceHandle
        ranges = [*reads, *writes, *([scratch] if scratch else [])]
        return self.enqueue(stream, run, name, ranges)

    def _misuse(self, reads: Sequence[Range], writes: Sequence[Range]) -> Iterator[str]:
        if any(_overlap(*pair) and pair[0] != pair[1] for pair in itertools.product(reads, writes)):
            yield "writes part of what it reads"
        if any(_overlap(*pair) for pair in itertools.combinations(writes, 2)):
            yield "has two outputs in one place"
        if self._thread.last_error != Status.cudaSuccess:
            yield f"would report {self._thread.last_error.name}, which an earlier call left behind"


def _overlap(one: Range, other: Range) -> bool:
    return one[0] < other[0] + other[1] and other[0] < one[0] + one[1]
