"""The state of the faked CUDA runtime: its memory, the work on its streams, and what a call may do now."""

import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from tests.helpers.gpu.fake_cuda.objects import (
    OK,
    Block,
    Bytes,
    CaptureMode,
    Event,
    Fault,
    Graph,
    Operation,
    Range,
    Status,
    StreamState,
)

FIRST_STREAM = 77
FIRST_ADDRESS = 0x10_0000_0000


def api_call(values: int = 0) -> Callable[[Any], Any]:
    """A call of the runtime that returns a status and so many values.

    Finalisers may run before and after it, as the garbage collector pleases. When the device is broken it fails, as
    every other call does from then on.
    """

    def decorate(method: Any) -> Any:
        @functools.wraps(method)
        def called(self: "State", *arguments: Any) -> tuple[Any, ...]:
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
class State:
    """What the calls of the faked CUDA runtime share.

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
