"""The stream of an NVIDIA GPU: who may enqueue, events, and when what is dropped may be freed.

Generations on several threads share the stream. Whoever enqueues takes a turn; while one thread records a graph, no
other can slip its work into the recording. What threads or the garbage collector drop meanwhile is freed afterwards.
"""

import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from adacache_engines.cuda.calls import checked
from adacache_engines.errors import require

_Dropped = deque[tuple[Callable[[], object], bool]]
_Leaving = deque[tuple[Any, list[Callable[[], object]]]]  # an event, and what is freed behind it


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
        self._recording = False
        self._dropped: _Dropped = deque()
        self._leaving: _Leaving = deque()
        self.use()
        # apart from the process's default stream, whose users must not be stopped by a recording, nor spoil it
        created = self.api.cudaStreamCreateWithFlags(self.api.cudaStreamNonBlocking)
        self.stream = int(checked(self.api, created, "creating a stream"))
        weakref.finalize(self, _close, self.api, self.stream, self._dropped, self._leaving)

    def use(self) -> None:
        """Make the GPU this thread's current one, for libraries that take the current one."""
        doing = f"opening GPU {self.index} (on a machine without one, --backend onnxruntime runs on the processor)"
        checked(self.api, self.api.cudaSetDevice(self.index), doing)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep other threads from enqueueing inside the context; turns may be taken within a turn."""
        with self._lock:
            self.use()
            self._sweep()
            yield

    def mark(self) -> "Event":
        """Return an event behind the work enqueued so far."""
        with self.turn():
            return Event(self)

    def milliseconds(self, start: object, stop: object) -> float:
        """Return the time between two events, in milliseconds; waits for the second."""
        assert isinstance(start, Event)
        assert isinstance(stop, Event)
        self.wait(stop)
        return float(checked(self.api, self.api.cudaEventElapsedTime(start.handle, stop.handle), "timing"))

    def wait(self, event: "Event") -> None:
        """Wait until the work before an event is done; other threads may enqueue meanwhile."""
        checked(self.api, self.api.cudaEventSynchronize(event.handle), "waiting for the GPU")

    def reached(self, event: "Event") -> bool:
        """Return whether the work before an event is done, without waiting for it."""
        return self._reached(event.handle)

    def synchronize(self) -> None:
        """Wait for all work enqueued so far, and free what was dropped."""
        self.wait(self.mark())
        with self.turn():
            pass

    def reclaim(self) -> bool:
        """Free what was dropped and waits for enqueued work; return False where there is nothing, or in a recording."""
        if self._recording or not (self._leaving or self._dropped):
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
        """Keep everything from being freed inside the context."""
        with self.turn():
            self._recording = True
            try:
                yield
            finally:
                self._recording = False

    @property
    def is_recording(self) -> bool:
        """Whether work that is enqueued now is recorded; asked within a turn."""
        return self._recording

    def drop(self, release: Callable[[], object], when_idle: bool = False) -> None:
        """Free something as soon as nothing is recorded; for finalisers, so on any thread and at any point.

        Waits for nothing: neither for another thread's turn, which could wait for what this thread holds, nor, with
        ``when_idle``, for the work that is enqueued by then, behind which it is freed in a later turn.
        """
        self._dropped.append((release, when_idle))
        if self._lock.acquire(blocking=False):
            try:
                self.use()  # a thread that drops may never have chosen a GPU
                self._sweep()
            finally:
                self._lock.release()

    def _reached(self, handle: Any) -> bool:
        result = self.api.cudaEventQuery(handle)
        if result[0] == self.api.cudaError_t.cudaErrorNotReady:
            return False
        checked(self.api, result, "asking for an event")
        return True

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


class Event:
    """A point on a stream. CUDA forgets it with this object."""

    def __init__(self, stream: Stream) -> None:
        api = stream.api
        self.handle = checked(api, api.cudaEventCreate(), "creating an event")
        weakref.finalize(self, stream.drop, functools.partial(api.cudaEventDestroy, self.handle))
        checked(api, api.cudaEventRecord(self.handle, stream.stream), "recording an event")


def _close(api: Any, stream: int, dropped: _Dropped, leaving: _Leaving) -> None:
    """Free what is left when the last user of a stream is gone."""
    api.cudaStreamSynchronize(stream)
    for event, behind in leaving:
        api.cudaEventDestroy(event)
        for release in behind:
            release()
    for release, _ in dropped:
        release()
    api.cudaStreamDestroy(stream)
