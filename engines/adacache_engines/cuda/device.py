"""One NVIDIA GPU as a device: buffers in its memory, and a stream on which everything runs in order.

It uses NVIDIA's own bindings of the CUDA runtime. Nothing waits for the GPU but ``read``, ``Readback.result``,
``milliseconds``, allocating and freeing, and ``write`` of more than the pinned memory that there is for it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from adacache_engines.contract.device import Buffer, Call, in_turn
from adacache_engines.cuda.calls import checked
from adacache_engines.cuda.graphs import RecordedSequence
from adacache_engines.cuda.memory import CudaBuffer, CudaReadback, Memory
from adacache_engines.cuda.pinned import PinningStream


class CudaDevice(PinningStream):
    """One GPU with a stream of its own.

    Args:
        index: number of the GPU.
        api: ``cuda.bindings.runtime``, or an object that stands in for it; None = the former.
        graphs: whether sequences of calls are recorded as CUDA graphs and replayed.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        EngineError: there is no such GPU.
    """

    kind = "cuda"

    def __init__(self, index: int = 0, api: Any = None, graphs: bool = True) -> None:
        super().__init__(index, api)
        self.graphs = graphs

    def compute_capability(self) -> str:
        """Return the GPU's compute capability, such as ``8.9``."""
        kinds = self.api.cudaDeviceAttr
        parts = [
            checked(self.api, self.api.cudaDeviceGetAttribute(kind, self.index), f"asking GPU {self.index}")
            for kind in (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        ]
        return ".".join(map(str, parts))

    def gpu_name(self) -> str:
        """Return the name that the GPU's maker gave it."""
        found = checked(self.api, self.api.cudaGetDeviceProperties(self.index), f"asking GPU {self.index}").name
        return found.decode(errors="replace") if isinstance(found, bytes) else str(found)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> CudaBuffer:
        nbytes = math.prod(shape) * dtype.itemsize
        memory = Memory(self, nbytes)
        with self.turn():
            checked(self.api, self.api.cudaMemsetAsync(memory.address, 0, nbytes, self.stream), "clearing memory")
        return CudaBuffer(self, memory, memory.address, shape, dtype)

    def allocate(self, nbytes: int) -> Memory:
        """Return device memory with whatever is in it."""
        return Memory(self, nbytes)

    def copy(self, source: Buffer, target: Buffer) -> Call:
        if source.shape != target.shape or source.dtype != target.dtype:
            raise ValueError(f"{source.dtype} {source.shape} cannot be copied to {target.dtype} {target.shape}")

        def call() -> None:
            self.enqueue_copy(target.address, source.address, source.nbytes, "DeviceToDevice")

        return call

    def readback(self, source: Buffer) -> CudaReadback:
        assert isinstance(source, CudaBuffer)
        return CudaReadback(source)

    def sequence(self, calls: Sequence[Call], name: str = "calls") -> Call:
        return RecordedSequence(self, calls, name) if self.graphs else in_turn(calls)

    def free_nbytes(self) -> int:
        self.reclaim()
        with self.turn():
            status, free, _total = self.api.cudaMemGetInfo()
            return int(checked(self.api, (status, free), "asking for free memory"))
