"""Memory of a GPU and of its host, tensors in it, and the ways between the two."""

import ctypes
import functools
import math
import weakref
from typing import TYPE_CHECKING

import numpy as np

from adacache_engines.contract.device import Array
from adacache_engines.cuda.calls import checked

if TYPE_CHECKING:
    from adacache_engines.cuda.device import CudaDevice


class CudaBuffer:
    """A tensor in device memory; ``owner`` is freed when the last buffer that shares it is gone."""

    def __init__(
        self, device: "CudaDevice", owner: "Memory", address: int, shape: tuple[int, ...], dtype: np.dtype
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
        self.owner.staging(self.address, self.nbytes).send(np.ascontiguousarray(array))

    def read(self) -> Array:
        readback = CudaReadback(self)
        readback.start()
        return readback.result()


class Memory:
    """An allocation that is freed with this object, when the work on it is done.

    Attributes:
        address: in the device's address space, or the host's for pinned memory.
    """

    def __init__(self, device: "CudaDevice", nbytes: int, pinned: bool = False) -> None:
        api = device.api
        allocate, release = (api.cudaMallocHost, api.cudaFreeHost) if pinned else (api.cudaMalloc, api.cudaFree)
        where = "pinned host memory" if pinned else "device memory"
        self.nbytes = nbytes
        self.address = int(checked(api, allocate(max(nbytes, 1)), f"allocating {nbytes} bytes of {where}"))
        self._device = device
        self._staging: dict[tuple[int, int], list[Staging]] = {}
        weakref.finalize(self, device.drop, functools.partial(release, self.address), when_idle=True)

    def staging(self, address: int, nbytes: int) -> "Staging":
        """A way from the host to a part of this memory, whose last values have left: a second one where they have not,
        so that nobody waits or writes over them.
        """
        ways = self._staging.setdefault((address, nbytes), [])
        for way in ways:
            if way.idle():
                return way
        ways.append(Staging(self._device, address, nbytes))
        return ways[-1]


class Event:
    """A point on the stream that is forgotten with this object."""

    def __init__(self, device: "CudaDevice") -> None:
        api = device.api
        self.handle = checked(api, api.cudaEventCreate(), "creating an event")
        weakref.finalize(self, device.drop, functools.partial(api.cudaEventDestroy, self.handle))
        checked(api, api.cudaEventRecord(self.handle, device.stream), "recording an event")


class Staging:
    """Pinned host memory for a range of device memory, and copies between the two behind the enqueued work."""

    def __init__(self, device: "CudaDevice", address: int, nbytes: int) -> None:
        self._device, self._address, self._nbytes = device, address, nbytes
        self._pinned = device.allocate(nbytes, pinned=True)
        self._copied: Event | None = None

    def idle(self) -> bool:
        """Whether the last copy was made."""
        return self._copied is None or self._device.reached(self._copied)

    def send(self, array: Array) -> None:
        """Enqueues the copy of a contiguous array, which may change afterwards; only while :meth:`idle`."""
        ctypes.memmove(self._pinned.address, array.ctypes.data, self._nbytes)
        self._copy(self._address, self._pinned.address, "HostToDevice")

    def fetch(self) -> None:
        """Enqueues the copy to the host."""
        self._copy(self._pinned.address, self._address, "DeviceToHost")

    def fetched(self) -> bytes:
        """Waits for the last ``fetch`` only."""
        assert self._copied is not None, "start() comes before result()"
        self._device.wait(self._copied)
        return ctypes.string_at(self._pinned.address, self._nbytes)

    def _copy(self, target: int, source: int, direction: str) -> None:
        with self._device.turn():
            self._device.enqueue_copy(target, source, self._nbytes, direction)
            self._copied = self._device.mark()


class CudaReadback:
    """Copies a buffer to pinned host memory behind the enqueued work; ``result`` waits for that copy only."""

    def __init__(self, source: CudaBuffer) -> None:
        self._source = source
        self._staging = Staging(source.device, source.address, source.nbytes)

    def start(self) -> None:
        self._staging.fetch()

    def result(self) -> Array:
        return np.frombuffer(self._staging.fetched(), self._source.dtype).reshape(self._source.shape)
