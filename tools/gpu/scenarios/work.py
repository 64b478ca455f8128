"""Work that scenarios enqueue on a device, and what they check it with."""

import itertools
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from adacache_engines.contract.device import Call
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.cuda.memory import CudaBuffer
from adacache_engines.errors import EngineError

FLOAT = np.dtype(np.float32)
MOST_NBYTES = 64 << 20  # of a large tensor; less where the device has little

Values = NDArray[np.float32]


def repeated(value: float, count: int = 4) -> Values:
    """Return an array (count,) with one value everywhere."""
    return np.full(count, value, np.float32)


def large_count(device: CudaDevice) -> int:
    """Return the number of elements of a large tensor, of which the device can hold several."""
    return min(MOST_NBYTES, device.free_nbytes() // 16) // FLOAT.itemsize


def chain(device: CudaDevice, count: int = 4) -> tuple[list[CudaBuffer], list[Call]]:
    """Return three buffers, and calls that copy each to the next."""
    buffers = [device.empty((count,), FLOAT) for _ in range(3)]
    return buffers, [device.copy(*pair) for pair in itertools.pairwise(buffers)]


def forget(result: object) -> None:
    """Take a result of which nothing is wanted."""


def refusal(call: Call, what: str) -> str:
    """Return the message of the error that a call must raise."""
    try:
        call()
    except EngineError as error:
        return str(error)
    raise AssertionError(f"{what} was not refused")


def on_threads(work: Callable[[int], None], count: int) -> None:
    """Do work on several threads at once, and raise the first error of them."""
    errors: list[BaseException] = []
    ready = threading.Barrier(count)

    def run(index: int) -> None:
        try:
            ready.wait()
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
