"""Memory, events and graphs that finalisers have dropped, which are freed when the work that uses them is done.

Finalisers run wherever the garbage collector pleases: on threads that never chose this GPU, in the middle of any call,
inside a recording of this GPU or another. So they only leave a note here, and whoever enqueues next frees.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from adacache_engines.cuda.calls import checked, forget_error

Release = Callable[[], object]


class Drops:
    """Everything of one stream that was dropped and is not freed.

    Args:
        api: the CUDA runtime.
        index: number of the GPU.
        stream: address of the stream.
    """

    def __init__(self, api: Any, index: int, stream: int) -> None:
        self._api, self._index, self._stream = api, index, stream
        self._dropped: deque[tuple[Release, bool]] = deque()
        self._leaving: deque[tuple[Any, list[Release]]] = deque()  # an event, and what is freed behind it
        self._last: list[Release] = []

    def __bool__(self) -> bool:
        return bool(self._dropped or self._leaving)

    def add(self, release: Release, when_idle: bool) -> None:
        """Have something freed in a later :meth:`sweep`: ``when_idle`` is behind the work enqueued until then."""
        self._dropped.append((release, when_idle))

    def add_last(self, release: Release) -> None:
        """Have something freed when the stream is closed."""
        self._last.append(release)

    def sweep(self) -> None:
        """Free what may be freed without waiting. The GPU is current, and nothing is recorded.

        Raises:
            EngineError: the GPU does not answer; nothing is lost.
        """
        if self._dropped:
            self._part()
        while self._leaving and reached(self._api, self._leaving[0][0]):
            event, releases = self._leaving.popleft()
            self._api.cudaEventDestroy(event)
            for release in releases:
                release()

    def _part(self) -> None:
        """Free what no work uses, and put an event behind the rest."""
        api, behind = self._api, []
        while self._dropped:
            release, when_idle = self._dropped.popleft()
            if when_idle:
                behind.append(release)
            else:
                release()
        if not behind:
            return
        try:
            event = checked(api, api.cudaEventCreateWithFlags(api.cudaEventDisableTiming), "creating an event")
            checked(api, api.cudaEventRecord(event, self._stream), "recording an event")
        except BaseException:
            self._dropped.extend((release, True) for release in behind)
            raise
        self._leaving.append((event, behind))

    def close(self) -> None:
        """Wait for the stream's work, free everything, and destroy the stream; what this thread does is left as it is.

        Nothing is asked for its status: at the end of a process, and after an error of the GPU, all may fail.
        """
        api = self._api
        _, before = api.cudaGetDevice()
        _, mode = api.cudaThreadExchangeStreamCaptureMode(api.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed)
        if before != self._index:
            api.cudaSetDevice(self._index)
        api.cudaStreamSynchronize(self._stream)
        for event, releases in self._leaving:
            api.cudaEventDestroy(event)
            for release in releases:
                release()
        for release, _ in self._dropped:
            release()
        for release in self._last:
            release()
        api.cudaStreamDestroy(self._stream)
        if before != self._index:
            api.cudaSetDevice(before)
        api.cudaThreadExchangeStreamCaptureMode(mode)


def reached(api: Any, event: Any) -> bool:
    """Return whether the work before an event is done, without waiting for it.

    Raises:
        EngineError: the GPU does not answer.
    """
    result = api.cudaEventQuery(event)
    if result[0] == api.cudaError_t.cudaErrorNotReady:
        forget_error(api)
        return False
    checked(api, result, "asking for an event")
    return True
