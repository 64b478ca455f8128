"""Memory of tensors that are mapped from a file, given back once they were read.

The system counts pages that were read as this process's. They cost nothing while memory is free, but a process under a
memory limit is stopped for them. Pages that are needed once more are read from the file again.
"""

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

MAPS = Path("/proc/self/maps")  # on Linux, a line a mapping: addresses, permissions, offset, device, inode
LEAST_BYTES = 1 << 16  # smallest tensor that is worth looking up in that file, which takes milliseconds


def taken(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy of a tensor in memory of its own, and give back the mapped pages that it was read from."""
    copy = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
    give_back(tensor)
    return copy


def give_back(tensor: Tensor) -> None:
    """Give back the pages of a tensor that is mapped from a file and was not written to.

    Tensors in other memory, and those of fewer than ``LEAST_BYTES``, are left alone.
    """
    advise = _madvise()
    if advise is None or tensor.nbytes < LEAST_BYTES:
        return
    start = tensor.data_ptr()
    storage = tensor.untyped_storage()
    stop = start + tensor.nbytes if tensor.is_contiguous() else storage.data_ptr() + int(storage.nbytes())
    start -= start % mmap.PAGESIZE  # a neighbour's values on the same page are read again, too
    if _of_file(start, stop):
        advise(start, stop - start, mmap.MADV_DONTNEED)


def _of_file(start: int, stop: int) -> bool:
    """Whether one mapping of a file holds all addresses from ``start`` to ``stop``."""
    for line in MAPS.read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        first, last = (int(address, 16) for address in addresses.split("-"))
        if first <= start < last:
            return inode != "0" and stop <= last
    return False


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """Return the system's ``madvise``, or None where there is none. Its failure has no consequence."""
    if sys.platform != "linux" or not MAPS.is_file():
        return None
    call = ctypes.CDLL(None).madvise
    call.argtypes, call.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return call
