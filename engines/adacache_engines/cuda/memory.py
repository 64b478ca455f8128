"""Memory of a GPU, tensors in it, and the ways between it and the host."""

import ctypes
import functools
import math
import weakref

import numpy as np

from adacache_engines.contract.device import Array
from adacache_engines.cuda.pinned import PIECE_NBYTES, PinningStream, copying, fetch, send
from adacache_engines.cuda.stream import retried


class CudaBuffer:
    """A tensor in device memory, which is freed when the last buffer that shares ``owner`` is gone."""

    def __init__(
        self, device: PinningStream, owner: "Memory", address: int, shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        self.device, self.owner = device, owner
        self.address, self.shape, self.dtype = address, shape, dtype
        self.nbytes = math.prod(shape) * dtype.itemsize

    def part(self, start: int, stop: int) -> "CudaBuffer":
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        return self._view(start, (max(stop - start, 0), *self.shape[1:]))

    def row(self, index: int) -> "CudaBuffer":
        if not 0 <= index < self.shape[0]:
            raise IndexError(index)
        return self._view(index, self.shape[1:])

    def _view(self, start: int, shape: tuple[int, ...]) -> "CudaBuffer":
        step = math.prod(self.shape[1:]) * self.dtype.itemsize
        return CudaBuffer(self.device, self.owner, self.address + start * step, shape, self.dtype)

    def write(self, array: Array) -> None:
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"a buffer {self.dtype} {self.shape} cannot hold {array.dtype} {array.shape}")
        send(self.device, self.address, np.ascontiguousarray(array))

    def read(self) -> Array:
        array = np.empty(self.shape, self.dtype)
        fetch(self.device, self.address, array)
        return array


class Memory:
    """An allocation of device memory that is freed with this object, once the work that is enqueued by then is done.

    Args:
        device: the device.
        nbytes: size in bytes.

    Attributes:
        nbytes: size that was asked for.
        address: address of the first byte.

    Raises:
        EngineError: there is too little memory, even when what others dropped is freed.
    """

    def __init__(self, device: PinningStream, nbytes: int) -> None:
        api, doing = device.api, f"allocating {nbytes} bytes of device memory"
        self.nbytes = nbytes
        self.address = retried(device, functools.partial(api.cudaMalloc, max(nbytes, 1)), doing)
        weakref.finalize(self, device.drop, functools.partial(api.cudaFree, self.address), when_idle=True)


class CudaReadback:
    """A copy of a buffer in pinned host memory, made behind the enqueued work; ``result`` waits for that copy only.

    Args:
        source: the buffer, of a few numbers: what is read back while the GPU goes on has to be pinned as a whole.
    """

    def __init__(self, source: CudaBuffer) -> None:
        if source.nbytes > PIECE_NBYTES:
            raise ValueError(
                f"a readback of {source.nbytes} bytes is not possible, at most {PIECE_NBYTES} are; call read() instead"
            )
        self._source, pinned = source, source.device.pinned
        self._block = pinned.take(source.device, source.nbytes)
        self._started = False
        weakref.finalize(self, pinned.give, self._block)

    def start(self) -> None:
        device = self._source.device
        with copying(device, self._block):
            device.enqueue_copy(self._block.address, self._source.address, self._source.nbytes, "DeviceToHost")
        self._started = True

    def result(self) -> Array:
        assert self._started, "start() comes before result()"
        source = self._source
        source.device.wait(self._block.copied)
        data = ctypes.string_at(self._block.address, source.nbytes)
        return np.frombuffer(data, source.dtype).reshape(source.shape)
