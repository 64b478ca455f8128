"""Scenarios of memory that is dropped with work on the way, and of too little memory."""

import gc
from typing import Any

import numpy as np

from adacache_engines.cuda.device import CudaDevice
from tools.gpu.scenarios.work import FLOAT, chain, forget, large_count, refusal, repeated


def drops_behind_work(api: Any) -> None:
    """Drop buffers while copies from them are still enqueued; the copies see their values."""
    device = CudaDevice(api=api)
    count = large_count(device) // 8
    target = device.empty((4, count), FLOAT)
    for turn in range(3):
        for index in range(4):
            source = device.empty((count,), FLOAT)
            source.write(repeated(10 * turn + index, count))
            device.copy(source, target.row(index))()
            del source
        for index, values in enumerate(target.read()):
            np.testing.assert_array_equal(values, repeated(10 * turn + index, count))


def dropped_devices(api: Any) -> None:
    """Open and drop devices with work on the way; their memory is free again."""
    CudaDevice(api=api).empty((4,), FLOAT)  # what the first device of a process takes for itself
    gc.collect()
    before = CudaDevice(api=api).free_nbytes()
    for _ in range(4):
        device = CudaDevice(api=api)
        buffers, calls = chain(device, large_count(device))
        sequence = device.sequence(calls)
        for _ in range(3):
            buffers[0].write(repeated(1, buffers[0].shape[0]))
            sequence()
        nbytes = buffers[0].nbytes
        del device, buffers, calls, sequence
        gc.collect()
    after = CudaDevice(api=api).free_nbytes()
    assert before - after < nbytes, f"{before - after} bytes are not free again"


def out_of_memory(api: Any) -> None:
    """Ask for more memory than there is, and go on."""
    device = CudaDevice(api=api)
    buffer = device.empty((4,), FLOAT)
    free = device.free_nbytes()
    for _ in range(2):
        message = refusal(lambda: forget(device.allocate(2 * free)), f"{2 * free} bytes, where {free} are free,")
        assert str(2 * free) in message, message
    buffer.write(repeated(3))
    np.testing.assert_array_equal(buffer.read(), repeated(3))


def dropped_memory_is_there_again(api: Any) -> None:
    """Take most of the memory several times in a row, with work on it, dropping it each time."""
    device = CudaDevice(api=api)
    count = device.free_nbytes() * 3 // 5 // FLOAT.itemsize
    for turn in range(3):
        buffer = device.empty((count,), FLOAT)
        end = buffer.part(count - 4, count)
        end.write(repeated(turn))
        np.testing.assert_array_equal(end.read(), repeated(turn))
        device.copy(buffer.part(0, 4), end)()
        del buffer, end
