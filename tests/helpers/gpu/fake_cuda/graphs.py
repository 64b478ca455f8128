"""Calls of the faked CUDA runtime that record graphs and launch them."""

import threading
import time

from tests.helpers.gpu.fake_cuda.objects import OK, CaptureMode, Graph, Status
from tests.helpers.gpu.fake_cuda.state import State, api_call


class Graphs(State):
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
