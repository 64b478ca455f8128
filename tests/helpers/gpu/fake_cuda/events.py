"""Calls of the faked CUDA runtime for events."""

from tests.helpers.gpu.fake_cuda.objects import OK, Event, Status
from tests.helpers.gpu.fake_cuda.state import State, api_call


class Events(State):
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
