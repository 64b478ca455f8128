"""Scenarios of copies, pinned memory, readbacks and times."""

import ctypes
import itertools
import math
from typing import Any

import numpy as np

from adacache_engines.cuda.calls import checked
from adacache_engines.cuda.device import CudaDevice
from tools.gpu.scenarios.work import FLOAT, large_count, repeated


def bindings_alone(api: Any) -> None:
    """Copy through pinned memory, record the copy, and replay it, with nothing of this project's in between."""

    def value(result: tuple[Any, ...]) -> Any:
        return checked(api, result, "in a scenario")

    nbytes, kinds = 4096, api.cudaMemcpyKind
    value(api.cudaSetDevice(0))
    stream = value(api.cudaStreamCreateWithFlags(api.cudaStreamNonBlocking))
    pinned, device = value(api.cudaMallocHost(nbytes)), value(api.cudaMalloc(nbytes))
    event = value(api.cudaEventCreate())
    value(api.cudaMemsetAsync(device, 7, nbytes, stream))
    value(api.cudaStreamBeginCapture(stream, api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
    value(api.cudaMemcpyAsync(pinned, device, nbytes, kinds.cudaMemcpyDeviceToHost, stream))
    graph = value(api.cudaStreamEndCapture(stream))
    replayed = value(api.cudaGraphInstantiate(graph, 0))
    for _ in range(2):
        value(api.cudaGraphLaunch(replayed, stream))
    value(api.cudaEventRecord(event, stream))
    value(api.cudaEventSynchronize(event))
    value(api.cudaStreamSynchronize(stream))
    assert ctypes.string_at(pinned, nbytes) == b"\7" * nbytes
    value(api.cudaGraphExecDestroy(replayed))
    value(api.cudaGraphDestroy(graph))
    value(api.cudaEventDestroy(event))
    value(api.cudaFree(device))
    value(api.cudaFreeHost(pinned))
    value(api.cudaStreamDestroy(stream))


def round_trips(api: Any) -> None:
    """Write and read buffers of every element type, odd sizes, views and no elements at all."""
    device = CudaDevice(api=api)
    random = np.random.default_rng(0)
    for dtype in ("bool", "uint8", "int64", "float16", "float32", "float64"):
        for shape in ((1,), (3, 5), (7, 1, 3), (0, 4)):
            values = random.integers(0, 2, shape).astype(dtype)
            buffer = device.empty(shape, np.dtype(dtype))
            assert not buffer.read().any(), "a new buffer is not zero"
            buffer.write(values)
            np.testing.assert_array_equal(buffer.read(), values)
    buffer = device.empty((4, 3), FLOAT)
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    buffer.write(values)
    np.testing.assert_array_equal(buffer.part(1, 3).read(), values[1:3])
    buffer.row(2).write(np.full(3, -1, np.float32))
    np.testing.assert_array_equal(buffer.read()[:, 0], [0, 3, -1, 9])


def large_copies(api: Any) -> None:
    """Move a large tensor to the device, across it and back, twice."""
    device = CudaDevice(api=api)
    count = large_count(device)
    source, target = device.empty((count,), FLOAT), device.empty((count,), FLOAT)
    copy = device.copy(source, target)
    for start in (1, 2):
        values = np.arange(start, start + count, dtype=np.float32)
        source.write(values)
        copy()
        np.testing.assert_array_equal(target.read(), values)


def writes_before_the_gpu_is_there(api: Any) -> None:
    """Write to one buffer many times in a row, and find each value where it was copied to meanwhile."""
    device = CudaDevice(api=api)
    count = large_count(device) // 64
    work, buffer = device.empty((count,), FLOAT), device.empty((count,), FLOAT)
    targets = [device.empty((count,), FLOAT) for _ in range(8)]
    for value, target in enumerate(targets):
        device.copy(buffer, work)()
        array = repeated(value, count)
        buffer.write(array)
        array[:] = -1  # which the buffer must not see
        device.copy(buffer, target)()
    for value, target in enumerate(targets):
        np.testing.assert_array_equal(target.read(), repeated(value, count))


def readbacks_in_order(api: Any) -> None:
    """Read back values of one point in the work, whatever is written behind it."""
    device = CudaDevice(api=api)
    source, target = device.empty((4,), FLOAT), device.empty((4,), FLOAT)
    copy, readback = device.copy(source, target), device.readback(target)
    for value in range(20):
        source.write(repeated(value))
        copy()
        readback.start()
        source.write(repeated(-1))
        copy()
        np.testing.assert_array_equal(readback.result(), repeated(value))
    np.testing.assert_array_equal(target.read(), repeated(-1))


def staging_is_kept(api: Any) -> None:
    """Read and write large and small tensors by turns; what one reading returned does not change with the next."""
    device = CudaDevice(api=api)
    large = large_count(device) // 8
    seen = []
    for turn in range(6):
        for count in (large, 3, large // 2, 1):
            buffer = device.empty((count,), FLOAT)
            buffer.write(repeated(turn, count))
            seen.append((turn, buffer.read()))
            del buffer
    for turn, values in seen:
        np.testing.assert_array_equal(values, repeated(turn, len(values)))


def times_between_marks(api: Any) -> None:
    """Measure time between two points in the work; later points are not earlier."""
    device = CudaDevice(api=api)
    count = large_count(device)
    source, target = (device.empty((count,), FLOAT) for _ in range(2))
    copy, marks = device.copy(source, target), [device.mark()]
    for _ in range(3):
        copy()
        marks.append(device.mark())
    times = [device.milliseconds(start, stop) for start, stop in itertools.pairwise(marks)]
    assert all(math.isfinite(time) and time >= 0 for time in times), times
    assert device.milliseconds(marks[0], marks[-1]) > 0
