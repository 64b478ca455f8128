"""What the faked CUDA runtime hands out and keeps: statuses, handles, memory, work, events, graphs and streams."""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

POISON = 0xFF  # of memory that nobody has written: NaN as a float

Bytes = NDArray[np.uint8]
Range = tuple[int, int]  # address and bytes


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorCapturedEvent = 907


OK = (Status.cudaSuccess,)


class CaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class Fault(AssertionError):
    """A fault that a GPU would not report, or would report elsewhere."""


class Handle(int):
    """A stream's handle, whose address is asked for as cuda-bindings 12.9.1 wants it."""

    def __int__(self) -> int:
        raise Fault("int() of a CUDA handle is deprecated: cuda.bindings.utils.get_cuda_native_handle")


@dataclass(eq=False)
class Block:
    address: int
    data: Bytes
    pinned: bool
    device: int = 0
    freed: bool = False
    held: Any = None  # keeps pinned memory where it is

    def __len__(self) -> int:
        return len(self.data)


@dataclass(eq=False)
class Event:
    device: int = 0
    timed: bool = True
    done: bool = True  # an event that was never recorded is no work at all
    recorded: bool = False
    captured: bool = False
    destroyed: bool = False


@dataclass(eq=False)
class Operation:
    """Work on a stream: ``ranges`` are what it touches, ``event`` is what it reaches."""

    run: Callable[[], None]
    what: str
    ranges: tuple[Range, ...] = ()
    event: Event | None = None


@dataclass(eq=False)
class Graph:
    operations: list[Operation]
    executable: bool = False
    destroyed: bool = False


@dataclass(eq=False)
class StreamState:
    """A stream; ``captured`` is what a capture has seen so far, None outside of one."""

    device: int
    queue: list[Operation] = field(default_factory=list)
    captured: list[Operation] | None = None
    capturer: int = 0
    invalidated: bool = False
    destroyed: bool = False


def overlap(one: Range, other: Range) -> bool:
    return one[0] < other[0] + other[1] and other[0] < one[0] + one[1]
