"""Copies, pinned memory, graphs, drops, threads and lack of memory on the project's CUDA device, without any engine.

Each scenario is a function of ``cuda.bindings.runtime``, or of an object that stands in for it. The tests run all of
them on the faked runtime, and ``tools/gpu_check.py`` on a GPU, which shows where the fake differs from it. They need
numpy and cuda-bindings only, and take as much memory as the device has to give.
"""

import ctypes
import gc
import itertools
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.contract.device import Call
from adacache_engines.cuda.calls import checked
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.cuda.memory import CudaBuffer
from adacache_engines.errors import EngineError

FLOAT = np.dtype(np.float32)
MOST_NBYTES = 64 << 20  # of a large tensor; less where the device has little

Values = NDArray[np.float32]


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
    count = _large(device)
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
    count = _large(device) // 64
    work, buffer = device.empty((count,), FLOAT), device.empty((count,), FLOAT)
    targets = [device.empty((count,), FLOAT) for _ in range(8)]
    for value, target in enumerate(targets):
        device.copy(buffer, work)()
        array = _values(value, count)
        buffer.write(array)
        array[:] = -1  # which the buffer must not see
        device.copy(buffer, target)()
    for value, target in enumerate(targets):
        np.testing.assert_array_equal(target.read(), _values(value, count))


def readbacks_in_order(api: Any) -> None:
    """Read back values of one point in the work, whatever is written behind it."""
    device = CudaDevice(api=api)
    source, target = device.empty((4,), FLOAT), device.empty((4,), FLOAT)
    copy, readback = device.copy(source, target), device.readback(target)
    for value in range(20):
        source.write(_values(value))
        copy()
        readback.start()
        source.write(_values(-1))
        copy()
        np.testing.assert_array_equal(readback.result(), _values(value))
    np.testing.assert_array_equal(target.read(), _values(-1))


def staging_is_kept(api: Any) -> None:
    """Read and write large and small tensors by turns; what one reading returned does not change with the next."""
    device = CudaDevice(api=api)
    large = _large(device) // 8
    seen = []
    for turn in range(6):
        for count in (large, 3, large // 2, 1):
            buffer = device.empty((count,), FLOAT)
            buffer.write(_values(turn, count))
            seen.append((turn, buffer.read()))
            del buffer
    for turn, values in seen:
        np.testing.assert_array_equal(values, _values(turn, len(values)))


def times_between_marks(api: Any) -> None:
    """Measure time between two points in the work; later points are not earlier."""
    device = CudaDevice(api=api)
    count = _large(device)
    source, target = (device.empty((count,), FLOAT) for _ in range(2))
    copy, marks = device.copy(source, target), [device.mark()]
    for _ in range(3):
        copy()
        marks.append(device.mark())
    times = [device.milliseconds(start, stop) for start, stop in itertools.pairwise(marks)]
    assert all(math.isfinite(time) and time >= 0 for time in times), times
    assert device.milliseconds(marks[0], marks[-1]) > 0


def drops_behind_work(api: Any) -> None:
    """Drop buffers while copies from them are still enqueued; the copies see their values."""
    device = CudaDevice(api=api)
    count = _large(device) // 8
    target = device.empty((4, count), FLOAT)
    for turn in range(3):
        for index in range(4):
            source = device.empty((count,), FLOAT)
            source.write(_values(10 * turn + index, count))
            device.copy(source, target.row(index))()
            del source
        for index, values in enumerate(target.read()):
            np.testing.assert_array_equal(values, _values(10 * turn + index, count))


def dropped_devices(api: Any) -> None:
    """Open and drop devices with work on the way; their memory is free again."""
    CudaDevice(api=api).empty((4,), FLOAT)  # what the first device of a process takes for itself
    gc.collect()
    before = CudaDevice(api=api).free_nbytes()
    for _ in range(4):
        device = CudaDevice(api=api)
        buffers, calls = _chain(device, _large(device))
        sequence = device.sequence(calls)
        for _ in range(3):
            buffers[0].write(_values(1, buffers[0].shape[0]))
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
        message = _refused(lambda: _forget(device.allocate(2 * free)), f"{2 * free} bytes, where {free} are free,")
        assert str(2 * free) in message, message
    buffer.write(_values(3))
    np.testing.assert_array_equal(buffer.read(), _values(3))


def dropped_memory_is_there_again(api: Any) -> None:
    """Take most of the memory several times in a row, with work on it, dropping it each time."""
    device = CudaDevice(api=api)
    count = device.free_nbytes() * 3 // 5 // FLOAT.itemsize
    for turn in range(3):
        buffer = device.empty((count,), FLOAT)
        end = buffer.part(count - 4, count)
        end.write(_values(turn))
        np.testing.assert_array_equal(end.read(), _values(turn))
        device.copy(buffer.part(0, 4), end)()
        del buffer, end


def recorded_sequences(api: Any) -> None:
    """Run a sequence as it is, record it, and replay it, with other values each time."""
    device = CudaDevice(api=api)
    buffers, calls = _chain(device)
    count: list[int] = []
    sequence = device.sequence([lambda: count.append(1), *calls])
    for value in range(6):
        buffers[0].write(_values(value))
        sequence()
        np.testing.assert_array_equal(buffers[-1].read(), _values(value))
    assert len(count) == 2, f"the calls were made {len(count)} times; once to run and once to record was expected"


def times_in_recordings(api: Any) -> None:
    """Mark points inside a sequence, which every replay passes anew; their times are those of what lies between."""
    device = CudaDevice(api=api)
    count = _large(device)
    large, small = [device.empty((count,), FLOAT) for _ in range(2)], [device.empty((4,), FLOAT) for _ in range(2)]
    marks = [device.marker() for _ in range(3)]
    sequence = device.sequence([marks[0], device.copy(*large), marks[1], device.copy(*small), marks[2]])
    before = device.mark()
    for _ in range(4):
        sequence()
        points = [before, *marks, device.mark()]
        times = [device.milliseconds(start, stop) for start, stop in itertools.pairwise(points)]
        assert all(math.isfinite(time) and time >= 0 for time in times), times
        assert times[1] > 0, times
        before = points[-1]


def several_sequences(api: Any) -> None:
    """Enqueue sequences that share buffers in many orders without waiting; all see what came before them."""
    device = CudaDevice(api=api)
    first, second, third = (device.empty((4,), FLOAT) for _ in range(3))
    forth, back = device.sequence([device.copy(first, second)]), device.sequence([device.copy(second, first)])
    keep = device.sequence([device.copy(second, third), device.copy(first, second)])
    for value in range(5):
        first.write(_values(value))
        forth()
        first.write(_values(-value))
        keep()
        back()
        np.testing.assert_array_equal(third.read(), _values(value))
        np.testing.assert_array_equal(first.read(), _values(-value))


def sequences_come_and_go(api: Any) -> None:
    """Record sequences on new buffers again and again, dropping each with its last launch on the way."""
    device = CudaDevice(api=api)
    for value in range(8):
        buffers, calls = _chain(device)
        sequence = device.sequence(calls)
        for _ in range(3):
            buffers[0].write(_values(value))
            sequence()
        readback = device.readback(buffers[-1])
        readback.start()
        del buffers, calls, sequence
        np.testing.assert_array_equal(readback.result(), _values(value))


def failed_recordings(api: Any) -> None:
    """Allocate, and wait, inside a recording: it fails with a message, and the stream goes on."""
    device = CudaDevice(api=api)
    buffers, calls = _chain(device)
    forbidden: Mapping[str, Call] = {
        "an allocation": lambda: _forget(device.empty((4,), FLOAT)),
        "waiting": device.synchronize,
        "reading": lambda: _forget(buffers[0].read()),
    }
    for what, call in forbidden.items():
        sequence = device.sequence([*calls, call], "a scenario")
        sequence()
        message = _refused(sequence, f"recording {what}")
        assert "cannot be recorded" in message, message
        buffers[0].write(_values(5))
        for each in calls:
            each()
        np.testing.assert_array_equal(buffers[-1].read(), _values(5))


def interrupted_recordings(api: Any) -> None:
    """Interrupt a recording, and record again."""
    device = CudaDevice(api=api)
    buffers, calls = _chain(device)
    interrupts = [False, True, False]

    def interrupted() -> None:
        if interrupts.pop(0):
            raise KeyboardInterrupt

    sequence = device.sequence([*calls, interrupted])
    sequence()
    try:
        sequence()
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("the interrupt was lost")
    for value in (1, 2):
        buffers[0].write(_values(value))
        sequence()
        np.testing.assert_array_equal(buffers[-1].read(), _values(value))


def drops_while_recording(api: Any) -> None:
    """Drop buffers, events and graphs inside a recording; they are freed behind it."""
    device = CudaDevice(api=api)
    buffers, calls = _chain(device)
    rubbish: list[object] = []
    for _ in range(3):
        others, copies = _chain(device)
        recorded = device.sequence(copies)
        recorded()
        recorded()
        rubbish += [*others, *copies, recorded, device.mark(), device.readback(others[0])]
        del others, copies, recorded
    dropped = [[], rubbish]  # by the first run, and by the recording
    sequence = device.sequence([calls[0], lambda: dropped.pop(0).clear(), *calls[1:]])
    for value in range(3):
        buffers[0].write(_values(value))
        sequence()
        np.testing.assert_array_equal(buffers[-1].read(), _values(value))
    assert not rubbish


def threads_enqueue_and_record(api: Any) -> None:
    """Write, record, replay and read on several threads that share a device."""
    device = CudaDevice(api=api)

    def work(base: int) -> None:
        for turn in range(4):
            buffers, calls = _chain(device)
            sequence = device.sequence(calls)
            for step in range(5):
                value = 1000 * base + 10 * turn + step
                buffers[0].write(_values(value))
                sequence()
                np.testing.assert_array_equal(buffers[-1].read(), _values(value))

    _on_threads(work, 4)


def drops_on_other_threads(api: Any) -> None:
    """Make buffers on one thread and drop them on others, which have never used the GPU."""
    device = CudaDevice(api=api)
    made: list[list[object]] = []
    for _ in range(4):
        buffers, calls = _chain(device)
        sequence = device.sequence(calls)
        sequence()
        sequence()
        made.append([*buffers, *calls, sequence, device.mark()])
        del buffers, calls, sequence

    def work(index: int) -> None:
        made[index].clear()
        gc.collect()

    _on_threads(work, len(made))
    buffer = device.empty((4,), FLOAT)
    buffer.write(_values(1))
    np.testing.assert_array_equal(buffer.read(), _values(1))


SCENARIOS: Mapping[str, Callable[[Any], None]] = {
    scenario.__name__: scenario
    for scenario in (
        bindings_alone,
        round_trips,
        large_copies,
        writes_before_the_gpu_is_there,
        readbacks_in_order,
        staging_is_kept,
        times_between_marks,
        drops_behind_work,
        dropped_devices,
        out_of_memory,
        dropped_memory_is_there_again,
        recorded_sequences,
        times_in_recordings,
        several_sequences,
        sequences_come_and_go,
        failed_recordings,
        interrupted_recordings,
        drops_while_recording,
        threads_enqueue_and_record,
        drops_on_other_threads,
    )
}


def _values(value: float, count: int = 4) -> Values:
    return np.full(count, value, np.float32)


def _large(device: CudaDevice) -> int:
    """Return the number of elements of a large tensor, of which the device can hold several."""
    return min(MOST_NBYTES, device.free_nbytes() // 16) // FLOAT.itemsize


def _chain(device: CudaDevice, count: int = 4) -> tuple[list[CudaBuffer], list[Call]]:
    """Return three buffers, and calls that copy each to the next."""
    buffers = [device.empty((count,), FLOAT) for _ in range(3)]
    return buffers, [device.copy(*pair) for pair in itertools.pairwise(buffers)]


def _forget(result: object) -> None:
    """Take a result of which nothing is wanted."""


def _refused(call: Call, what: str) -> str:
    """Return the message of the error that a call must raise."""
    try:
        call()
    except EngineError as error:
        return str(error)
    raise AssertionError(f"{what} was not refused")


def _on_threads(work: Callable[[int], None], count: int) -> None:
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
