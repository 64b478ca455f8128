"""A stand-in for ``cuda.bindings.runtime`` that checks what a GPU would, and runs enqueued work only when waited for.

Device memory is at addresses of its own that are never used twice, so that every access can be checked when it runs.
A fault is what is undefined on a GPU, or forbidden by CUDA's documentation without an error that says so; it is raised
where it is seen, and kept in ``faults`` for those seen in finalisers and threads. Everything else that CUDA refuses is
answered with its status, as the real calls do, and the status also stays behind as the thread's last error.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

from tests.helpers.gpu.fake_cuda.events import Events
from tests.helpers.gpu.fake_cuda.graphs import Graphs
from tests.helpers.gpu.fake_cuda.memory import Memory
from tests.helpers.gpu.fake_cuda.objects import Bytes, CaptureMode, Event, Fault, Graph, Range, Status, overlap
from tests.helpers.gpu.fake_cuda.streams import Streams

__all__ = ["Bytes", "CaptureMode", "Event", "FakeCuda", "Fault", "Graph", "Range", "Status"]


class FakeCuda(Streams, Memory, Events, Graphs):
    """The part of ``cuda.bindings.runtime`` that is used, and what libraries that run kernels need beside it."""

    def launch(
        self,
        stream: int,
        name: str,
        reads: Sequence[Range],
        writes: Sequence[Range],
        function: Callable[[Sequence[Bytes], Sequence[Bytes]], None],
        scratch: Range | None = None,
    ) -> Status:
        """Enqueue a kernel over ranges; what was in ``scratch`` is lost.

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
        if any(overlap(*pair) and pair[0] != pair[1] for pair in itertools.product(reads, writes)):
            yield "writes part of what it reads"
        if any(overlap(*pair) for pair in itertools.combinations(writes, 2)):
            yield "has two outputs in one place"
        if self._thread.last_error != Status.cudaSuccess:
            yield f"would report {self._thread.last_error.name}, which an earlier call left behind"
