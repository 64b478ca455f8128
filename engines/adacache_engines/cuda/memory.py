"""Memory of a GPU and of its host, tensors in it, and the ways between the two."""

import ctypes
import functools
import math
import weakref

import numpy as np

from adacache_engines.contract.device import Array
from adacache_engines.cuda.calls import checked
from adacache_engines.cuda.stream import Event, Stream
from adacache_engines.errors import EngineError


class CudaBuffer:
    """A tensor in device memory, which is freed when the last buffer that shares ``owner`` is gone."""

    def __init__(self, stream: Stream, owner: "Memory", address: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.stream, self.owner = stream, owner
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
        return CudaBuffer(self.stream, self.owner, self.address + start * step, shape, self.dtype)

    def write(self, array: Array) -> None:
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"a buffer {self.dtype} {self.shape} cannot hold {array.dtype} {array.shape}")
        self.owner.staging(self.address, self.nbytes).send(np.ascontiguousarray(array))

    def read(self) -> Array:
        readback = CudaReadback(self)
        readback.start()
        return readback.result()


class Memory:
    """An allocation that is freed with this object, once the work that is enqueued by then is done.

    Attributes:
        nbytes: size that was asked for.
        address: address of the first byte, on the device, or on the host for pinned memory.
    """

    def __init__(self, stream: Stream, nbytes: int, pinned: bool = False) -> None:
        api = stream.api
        allocate, release = (api.cudaMallocHost, api.cudaFreeHost) if pinned else (api.cudaMalloc, api.cudaFree)
        where = "pinned host memory" if pinned else "device memory"
        self.nbytes = nbytes
        self.address = int(checked(api, allocate(max(nbytes, 1)), f"allocating {nbytes} bytes of {where}"))
        self._stream = stream
        self._staging: dict[tuple[int, int], list[Staging]] = {}
        weakref.finalize(self, stream.drop, functools.partial(release, self.address), when_idle=True)

    def staging(self, address: int, nbytes: int) -> "Staging":
        """Return staging memory for a part of this memory whose last values have left.

        Where they have not, it is a second one, so that nobody waits or writes over them.
        """
        ways = self._staging.setdefault((address, nbytes), [])
        for way in ways:
            if way.idle():
                return way
        ways.append(Staging(self._stream, address, nbytes))
        return ways[-1]


def allocate(stream: Stream, nbytes: int, pinned: bool = False) -> Memory:
    """Return device memory, or pinned host memory that the GPU reads and writes, with whatever is in it.

    Raises:
        EngineError: there is too little memory, even when what others dropped is freed.
    """
    with stream.turn():
        try:
            return Memory(stream, nbytes, pinned)
        except EngineError:
            if not stream.reclaim():
                raise
            return Memory(stream, nbytes, pinned)


class Staging:
    """Pinned host memory for a range of device memory, and copies between the two behind the enqueued work."""

    def __init__(self, stream: Stream, address: int, nbytes: int) -> None:
        self._stream, self._address, self._nbytes = stream, address, nbytes
        self._pinned = allocate(stream, nbytes, pinned=True)
        self._copied: Event | None = None

    def idle(self) -> bool:
        """Return whether the last copy was made."""
        return self._copied is None or self._stream.reached(self._copied)

    def send(self, array: Array) -> None:
        """Enqueue the copy of a contiguous array, which may change afterwards; only while :meth:`idle`."""
        ctypes.memmove(self._pinned.address, array.ctypes.data, self._nbytes)
        self._copy(self._address, self._pinned.address, "HostToDevice")

    def fetch(self) -> None:
        """Enqueue the copy to the host."""
        self._copy(self._pinned.address, self._address, "DeviceToHost")

    def fetched(self) -> bytes:
        """Return what the last ``fetch`` copied; waits for that copy only."""
        assert self._copied is not None, "start() comes before result()"
        self._stream.wait(self._copied)
        return ctypes.string_at(self._pinned.address, self._nbytes)

    def _copy(self, target: int, source: int, direction: str) -> None:
        with self._stream.turn():
            self._stream.enqueue_copy(target, source, self._nbytes, direction)
            self._copied = self._stream.mark()


class CudaReadback:
    """A copy of a buffer in pinned host memory, made behind the enqueued work; ``result`` waits for that copy only."""

    def __init__(self, source: CudaBuffer) -> None:
        self._source = source
        self._staging = Staging(source.stream, source.address, source.nbytes)

    def start(self) -> None:
        self._staging.fetch()

    def result(self) -> Array:
        return np.frombuffer(self._staging.fetched(), self._source.dtype).reshape(self._source.shape)
