"""Pinned memory of the host, through which values travel to a GPU and back, in blocks that are used again.

Pinning takes as long as many copies, and a copy of memory that is not pinned may first wait for the stream. Large
tensors go through blocks in pieces, so that little memory is pinned however large they are.
"""

import ctypes
import functools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from adacache_engines.contract.device import Array
from adacache_engines.cuda.calls import checked
from adacache_engines.cuda.stream import Stream, retried
from adacache_engines.errors import EngineError

LEAST_NBYTES = 4 << 10  # of a block: a page
PIECE_NBYTES = 16 << 20  # of the largest block
ENOUGH_NBYTES = 128 << 20  # from which on a block is waited for where it can be; else another is pinned
IN_FLIGHT = 2  # pieces: the GPU copies one while the host copies another


@dataclass(eq=False)
class Block:
    """Pinned memory, and an event behind the last copy from or to it."""

    address: int
    nbytes: int
    copied: Any


class PinningStream(Stream):
    """A stream with pinned memory of the host for the values that travel on it.

    Attributes:
        pinned: memory of the host through which values travel.
    """

    def __init__(self, index: int = 0, api: Any = None) -> None:
        super().__init__(index, api)
        self.pinned = Pinned()


class Pinned:
    """The blocks of a device, each of which one user has at a time. They are freed with the device."""

    def __init__(self) -> None:
        self._blocks: dict[int, deque[Block]] = {}
        self.nbytes = 0

    def take(self, stream: Stream, nbytes: int) -> Block:
        """Return a block of at least so many bytes, from and to which nothing is being copied.

        Raises:
            EngineError: a graph is being recorded, whose replays could not have values of their own; or the host has
                too little memory.
        """
        size = max(LEAST_NBYTES, 1 << (nbytes - 1).bit_length())
        with stream.turn():
            if stream.is_recording:
                raise EngineError("values cannot be read or written while a graph is recorded")
            blocks = self._blocks.setdefault(size, deque())
            if blocks and stream.reached(blocks[0].copied):
                return blocks.popleft()
            if not blocks or self.nbytes + size <= ENOUGH_NBYTES:
                return self._new(stream, size)
            block = blocks.popleft()
        stream.wait(block.copied)  # outside the turn, so that other threads may enqueue
        return block

    def give(self, block: Block) -> None:
        """Give a block back. Copies from and to it may still be on their way."""
        self._blocks[block.nbytes].append(block)

    def _new(self, stream: Stream, size: int) -> Block:
        api, doing = stream.api, f"allocating {size} bytes of pinned host memory"
        address = retried(stream, functools.partial(api.cudaMallocHost, size), doing)
        stream.drops.add_last(functools.partial(api.cudaFreeHost, address))
        event = checked(api, api.cudaEventCreateWithFlags(api.cudaEventDisableTiming), "creating an event")
        stream.drops.add_last(functools.partial(api.cudaEventDestroy, event))
        self.nbytes += size
        return Block(address, size, event)


def send(stream: PinningStream, address: int, array: Array) -> None:
    """Enqueue the copy of a contiguous array to the device; the array may change afterwards."""
    for start, nbytes in _pieces(array.nbytes):
        block = stream.pinned.take(stream, nbytes)
        ctypes.memmove(block.address, array.ctypes.data + start, nbytes)
        with copying(stream, block):
            stream.enqueue_copy(address + start, block.address, nbytes, "HostToDevice")
        stream.pinned.give(block)


def fetch(stream: PinningStream, address: int, array: Array) -> None:
    """Copy device memory to a contiguous array, behind the work enqueued so far, and wait for it."""
    on_the_way: deque[tuple[int, int, Block]] = deque()
    for start, nbytes in _pieces(array.nbytes):
        block = stream.pinned.take(stream, nbytes)
        with copying(stream, block):
            stream.enqueue_copy(block.address, address + start, nbytes, "DeviceToHost")
        on_the_way.append((start, nbytes, block))
        if len(on_the_way) == IN_FLIGHT:
            _arrive(stream, array, *on_the_way.popleft())
    while on_the_way:
        _arrive(stream, array, *on_the_way.popleft())


@contextmanager
def copying(stream: Stream, block: Block) -> Iterator[None]:
    """Put a block's event behind what is enqueued inside the context."""
    with stream.turn():
        yield
        checked(stream.api, stream.api.cudaEventRecord(block.copied, stream.stream), "recording an event")


def _arrive(stream: PinningStream, array: Array, start: int, nbytes: int, block: Block) -> None:
    stream.wait(block.copied)
    ctypes.memmove(array.ctypes.data + start, block.address, nbytes)
    stream.pinned.give(block)


def _pieces(nbytes: int) -> Iterator[tuple[int, int]]:
    """Yield the start and the size of each piece of a tensor, in bytes."""
    for start in range(0, nbytes, PIECE_NBYTES):
        yield start, min(PIECE_NBYTES, nbytes - start)
