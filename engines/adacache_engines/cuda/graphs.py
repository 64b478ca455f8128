"""Sequences of calls as CUDA graphs: run once as they are, recorded the second time, replayed from then on.

The first run lets engines do what they do once, such as allocating and compiling, which no graph can hold. A graph
is valid for the addresses that it was recorded with; whoever binds other buffers makes another sequence.
"""

import functools
import weakref
from collections.abc import Sequence
from typing import Any

from adacache_engines.contract.device import Call
from adacache_engines.cuda.calls import checked, forget_error
from adacache_engines.cuda.stream import Stream
from adacache_engines.errors import DeviceLostError, EngineError

SWITCH_OFF = "run without CUDA graphs: --no-cuda-graphs, or cuda_graphs=False in Python"


class RecordedSequence:
    """A sequence of calls that is replayed as one graph.

    Args:
        stream: stream on which the calls enqueue their work.
        calls: calls that do the same each time.
        name: name of the sequence in error messages.
    """

    def __init__(self, stream: Stream, calls: Sequence[Call], name: str) -> None:
        self._stream, self._calls, self._name = stream, tuple(calls), name
        self._warm = False
        self._graph: Any = None

    def __call__(self) -> None:
        """Make the calls, or replay them.

        Raises:
            EngineError: a call failed, or the calls cannot be recorded; says how to do without graphs.
        """
        api, stream = self._stream.api, self._stream
        with stream.turn():
            if not self._warm:
                for call in self._calls:
                    call()
                self._warm = True
                return
            if self._graph is None:
                self._record()
            checked(api, api.cudaGraphLaunch(self._graph, stream.stream), f"launching the graph of {self._name}")

    def _record(self) -> None:
        api, stream = self._stream.api, self._stream
        try:
            graph = self._captured()
            try:
                self._graph = checked(api, api.cudaGraphInstantiate(graph, 0), "instantiating the graph")
            finally:
                api.cudaGraphDestroy(graph)
        except DeviceLostError:
            raise
        except EngineError as error:
            raise EngineError(f"{self._name} cannot be recorded as a CUDA graph: {error}; {SWITCH_OFF}") from error
        weakref.finalize(self, stream.drop, functools.partial(api.cudaGraphExecDestroy, self._graph), when_idle=True)

    def _captured(self) -> Any:
        """Return the graph of all calls; the stream is usable again afterwards, whatever happened."""
        api, stream = self._stream.api, self._stream
        # other threads may allocate meanwhile; what they enqueue waits for this turn to end
        mode = api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with stream.recording():
            checked(api, api.cudaStreamBeginCapture(stream.stream, mode), "beginning to record")
            failed = True
            try:
                for call in self._calls:
                    call()
                failed = False
            finally:
                status, graph = api.cudaStreamEndCapture(stream.stream)
                if failed and status == api.cudaError_t.cudaSuccess:
                    api.cudaGraphDestroy(graph)
                elif failed:
                    forget_error(api)
        return checked(api, (status, graph), "recording")
