"""The stream of an NVIDIA GPU: who may enqueue, and points in the enqueued work.

Generations on several threads share the stream. Whoever enqueues takes a turn; while one thread records a graph, no
other can slip its work into the recording. What is dropped meanwhile is freed in a later turn.
"""

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from adacache_engines.contract.device import Mark
from adacache_engines.cuda.calls import checked, native_handle
from adacache_engines.cuda.drops import Drops, reached
from adacache_engines.errors import EngineError, require


class Stream:
    """One stream of one GPU, on which everything runs in order.

    Args:
        index: number of the GPU.
        api: ``cuda.bindings.runtime``, or an object that stands in for it; None = the former.

    Attributes:
        stream: address of the stream.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        EngineError: there is no such GPU.
    """

    def __init__(self, index: int = 0, api: Any = None) -> None:
        self.index = index
        self.api = require("cuda.bindings.runtime", "gpu") if api is None else api
        self._lock = threading.RLock()
        self._turns = 0  # that the thread which has the lock is in the middle of
        self._recording = False
        self.use()
        # apart from the process's default stream, whose users must not be stopped by a recording, nor spoil it
        created = self.api.cudaStreamCreateWithFlags(self.api.cudaStreamNonBlocking)
        self.stream = native_handle(checked(self.api, created, "creating a stream"))
        self.drops = Drops(self.api, index, self.stream)
        weakref.finalize(self, self.drops.close)

    @property
    def is_recording(self) -> bool:
        """Whether work that is enqueued now is recorded; asked within a turn."""
        return self._recording

    def use(self) -> None:
        """Make the GPU this thread's current one, for libraries that take the current one."""
        doing = f"opening GPU {self.index} (on a machine without one, --backend onnxruntime runs on the processor)"
        checked(self.api, self.api.cudaSetDevice(self.index), doing)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep other threads from enqueueing inside the context; turns may be taken within a turn."""
        with self._lock:
            if not self._turns:
                self.use()
                self.drops.sweep()
            self._turns += 1
            try:
                yield
            finally:
                self._turns -= 1

    def mark(self) -> "Event":
        """Return an event behind the work enqueued so far."""
        event = self.marker()
        event()
        return event

    def marker(self) -> "Event":
        """Return an event that is put behind the work enqueued so far each time it is called."""
        with self.turn():
            return Event(self)

    def milliseconds(self, start: Mark, stop: Mark) -> float:
        """Return the time between two events, in milliseconds; waits for the second."""
        assert isinstance(start, Event)
        assert isinstance(stop, Event)
        self.wait(stop.handle)
        return float(checked(self.api, self.api.cudaEventElapsedTime(start.handle, stop.handle), "timing"))

    def wait(self, event: Any) -> None:
        """Wait until the work before an event is done; other threads may enqueue meanwhile.

        Args:
            event: the event's handle.
        """
        checked(self.api, self.api.cudaEventSynchronize(event), "waiting for the GPU")

    def reached(self, event: Any) -> bool:
        """Return whether the work before an event is done, without waiting for it; see :meth:`wait`."""
        return reached(self.api, event)

    def synchronize(self) -> None:
        """Wait for all work enqueued so far, and free everything that was dropped; what is freed may drop more."""
        while True:
            self.wait(self.mark().handle)
            with self.turn():
                if self._recording:
                    return
                self.drops.sweep()
                if not self.drops:
                    return

    def reclaim(self) -> bool:
        """Free what was dropped, waiting for enqueued work; return False where there is nothing, or in a recording."""
        with self.turn():
            if self._recording or not self.drops:
                return False
            self.synchronize()
            return True

    def enqueue_copy(self, target: int, source: int, nbytes: int, direction: str) -> None:
        """Copy between addresses; ``direction`` is ``HostToDevice``, ``DeviceToHost`` or ``DeviceToDevice``."""
        kind = getattr(self.api.cudaMemcpyKind, f"cudaMemcpy{direction}")
        with self.turn():
            checked(
                self.api, self.api.cudaMemcpyAsync(target, source, nbytes, kind, self.stream), f"copying {direction}"
            )

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what is enqueued inside the context, instead of running it; nothing is freed meanwhile."""
        with self.turn():
            self._recording = True
            try:
                yield
            finally:
                self._recording = False

    def drop(self, release: Callable[[], object], when_idle: bool = False) -> None:
        """Have something freed in a later turn; for finalisers, so on any thread and at any point.

        Args:
            release: frees it.
            when_idle: whether enqueued work may use it, behind which it is freed.
        """
        self.drops.add(release, when_idle)


class Event:
    """A point in the work on a stream, which each call puts behind what is enqueued by then.

    Inside a recording it becomes part of the graph, so that each replay puts it there.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream, api = stream, stream.api
        self.handle = checked(api, api.cudaEventCreate(), "creating an event")
        weakref.finalize(self, stream.drop, functools.partial(api.cudaEventDestroy, self.handle))

    def __call__(self) -> None:
        stream, api = self._stream, self._stream.api
        with stream.turn():
            if stream.is_recording:
                external = api.cudaEventRecordExternal  # else the event could be used inside the graph only
                result = api.cudaEventRecordWithFlags(self.handle, stream.stream, external)
            else:
                result = api.cudaEventRecord(self.handle, stream.stream)
            checked(api, result, "recording an event")


def retried(stream: Stream, allocate: Callable[[], tuple[Any, ...]], doing: str) -> int:
    """Return the address that an allocation gives, freeing what others dropped where there is too little memory.

    Raises:
        EngineError: there is too little memory even so.
    """
    with stream.turn():
        try:
            return int(checked(stream.api, allocate(), doing))
        except EngineError:
            if not stream.reclaim():
                raise
            return int(checked(stream.api, allocate(), doing))
