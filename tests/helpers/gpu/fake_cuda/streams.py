"""Calls of the faked CUDA runtime for errors, devices and streams."""

from types import SimpleNamespace
from typing import Any

from tests.helpers.gpu.fake_cuda.objects import OK, Handle, Status, StreamState
from tests.helpers.gpu.fake_cuda.state import State, api_call


class Streams(State):
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
