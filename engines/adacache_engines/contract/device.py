"""Memory that engines read and write, owned by whoever drives them; here on the host.

A device hands out buffers and enqueues work on them. On the host everything has happened when a call returns;
on a GPU the same calls only enqueue, which is why results come back through :class:`Readback`.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Call = Callable[[], None]
MEMINFO = Path("/proc/meminfo")  # of Linux


class Buffer(Protocol):
    """A contiguous tensor in a device's memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def address(self) -> int:
        """Address of the first byte, in the device's address space."""
        ...

    def part(self, start: int, stop: int) -> "Buffer":
        """Return a view of the entries ``start:stop`` of the first axis."""
        ...

    def row(self, index: int) -> "Buffer":
        """Return a view of one entry of the first axis; the view has one axis less."""
        ...

    def write(self, array: Array) -> None:
        """Fill the buffer from the host; the array must have its shape and dtype."""
        ...

    def read(self) -> Array:
        """Return a copy on the host, made after all work enqueued so far."""
        ...


class Readback(Protocol):
    """A copy of a buffer to the host that does not stop the device."""

    def start(self) -> None:
        """Enqueue the copy behind the work enqueued so far."""
        ...

    def result(self) -> Array:
        """Return the values of the last ``start``; waits for that copy only."""
        ...


class Mark(Protocol):
    """A point in the enqueued work, for :meth:`Device.milliseconds`."""

    def __call__(self) -> None:
        """Put the point behind the work enqueued so far; inside a sequence, each run of the sequence does."""
        ...


class Device(Protocol):
    """Memory in which buffers live, and the order in which work on them is done."""

    @property
    def kind(self) -> str:
        """``cpu`` or ``cuda``."""
        ...

    @property
    def index(self) -> int: ...

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Buffer:
        """Return a buffer of zeros.

        Not of whatever is there: PNDM gives predictions that are not there yet the weight 0, and 0 times NaN is NaN.
        """
        ...

    def copy(self, source: Buffer, target: Buffer) -> Call:
        """Return a call that copies ``source`` to ``target``, which have the same shape and dtype."""
        ...

    def readback(self, source: Buffer) -> Readback: ...

    def sequence(self, calls: Sequence[Call], name: str = "calls") -> Call:
        """Return one call that makes ``calls`` in turn; a device that can, records and replays them.

        The calls must do the same each time: enqueue engines, copies and marks on the same buffers, and nothing else.
        ``name`` is for error messages.
        """
        ...

    def free_nbytes(self) -> int | None:
        """Return the bytes of memory that are not taken; None = not known."""
        ...

    def synchronize(self) -> None:
        """Wait for all work enqueued so far, and free everything that was dropped."""
        ...

    def mark(self) -> Mark:
        """Return a point behind the work enqueued so far."""
        ...

    def marker(self) -> Mark:
        """Return a point that is nowhere yet, and is put behind the work enqueued so far whenever it is called."""
        ...

    def milliseconds(self, start: Mark, stop: Mark) -> float:
        """Return the time between two points, in milliseconds; waits for the second."""
        ...


@dataclass(frozen=True)
class HostBuffer:
    """A buffer that is a numpy array."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    @property
    def address(self) -> int:
        return self.array.ctypes.data

    def part(self, start: int, stop: int) -> "HostBuffer":
        return HostBuffer(self.array[start:stop])

    def row(self, index: int) -> "HostBuffer":
        return HostBuffer(self.array[index])

    def write(self, array: Array) -> None:
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"a buffer {self.dtype} {self.shape} cannot hold {array.dtype} {array.shape}")
        self.array[...] = array

    def read(self) -> Array:
        return self.array.copy()


@dataclass(frozen=True)
class HostReadback:
    """A readback from host memory, which needs no copy before its result is asked for."""

    source: Buffer

    def start(self) -> None:
        pass

    def result(self) -> Array:
        return self.source.read()


@dataclass
class HostMark:
    """A point in time, in seconds."""

    time_s: float = math.nan

    def __call__(self) -> None:
        self.time_s = time.perf_counter()


@dataclass(frozen=True)
class HostDevice:
    """The processor's own memory, on which calls run at once."""

    kind: str = "cpu"
    index: int = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> HostBuffer:
        return HostBuffer(np.zeros(shape, dtype))

    def copy(self, source: Buffer, target: Buffer) -> Call:
        if not (isinstance(source, HostBuffer) and isinstance(target, HostBuffer)):
            raise TypeError("the host device copies between host buffers")
        to, origin = target.array, source.array

        def call() -> None:
            np.copyto(to, origin, casting="no")

        return call

    def readback(self, source: Buffer) -> HostReadback:
        return HostReadback(source)

    def sequence(self, calls: Sequence[Call], name: str = "calls") -> Call:
        return in_turn(calls)

    def free_nbytes(self) -> int | None:
        """Return the bytes that Linux can give without swapping; None on other systems."""
        if not MEMINFO.is_file():
            return None
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None

    def synchronize(self) -> None:
        """Do nothing: all work is done when its call returns, and memory is free when it is dropped."""

    def mark(self) -> HostMark:
        return HostMark(time.perf_counter())

    def marker(self) -> HostMark:
        return HostMark()

    def milliseconds(self, start: Mark, stop: Mark) -> float:
        assert isinstance(start, HostMark)
        assert isinstance(stop, HostMark)
        return 1e3 * (stop.time_s - start.time_s)


def in_turn(calls: Sequence[Call]) -> Call:
    """Return one call that makes all of these, one after another."""
    calls = tuple(calls)

    def call() -> None:
        for each in calls:
            each()

    return call
