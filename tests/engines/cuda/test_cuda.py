"""CUDA buffers, copies and graphs on a faked CUDA runtime, which checks what a GPU would."""

import gc
import itertools
import threading
from collections.abc import Callable

import numpy as np
import pytest

from adacache_engines.contract.device import HostDevice
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.cuda.memory import CudaBuffer
from adacache_engines.errors import EngineError
from tests.helpers.gpu.cuda_work import FLOAT, ones
from tests.helpers.gpu.fake_cuda import FakeCuda, Fault


def test_round_trip_and_views(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    buffer = device.empty((3, 2, 2), FLOAT)
    values = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    assert not buffer.read().any()
    buffer.write(values)
    np.testing.assert_array_equal(buffer.read(), values)
    np.testing.assert_array_equal(buffer.part(1, 3).read(), values[1:])
    np.testing.assert_array_equal(buffer.row(2).read(), values[2])
    buffer.row(0).write(np.full((2, 2), 9, np.float32))
    assert (buffer.read()[0] == 9).all()
    with pytest.raises(IndexError):
        buffer.row(3)
    with pytest.raises(ValueError, match="cannot hold"):
        buffer.write(values.astype(np.float64))


def test_only_results_wait(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    source, target = device.empty((4,), FLOAT), device.empty((4,), FLOAT)
    copy, readback = device.copy(source, target), device.readback(target)
    source.write(np.full(4, 2, np.float32))
    before = device.mark()
    copy()
    readback.start()
    source.write(np.full(4, 3, np.float32))  # behind the copy
    after = device.mark()
    assert api.waits == 0
    np.testing.assert_array_equal(readback.result(), np.full(4, 2, np.float32))
    assert api.queue, "the result came without waiting for what was enqueued after it"
    assert device.milliseconds(before, after) == 1.5
    np.testing.assert_array_equal(target.read(), np.full(4, 2, np.float32))


def test_memory_lives_as_long_as_a_view_of_it(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    buffer = device.empty((2, 8), FLOAT)
    row = buffer.row(1)
    del buffer
    device.synchronize()
    assert len(api.blocks) == 1
    del row
    device.synchronize()
    assert not api.blocks


def test_errors_name_what_failed(api: FakeCuda) -> None:
    with pytest.raises(EngineError, match="GPU 3"):
        CudaDevice(index=3, api=api)
    device = CudaDevice(api=api)
    with pytest.raises(EngineError, match="allocating 4000000 bytes"):
        device.empty((1000, 1000), FLOAT)
    with pytest.raises(ValueError, match="cannot be copied"):
        device.copy(device.empty((2,), FLOAT), device.empty((3,), FLOAT))


# what a GPU does not tell


def test_a_write_neither_waits_nor_races(api: FakeCuda) -> None:
    """However often it comes before the GPU has got there."""
    device = CudaDevice(api=api)
    buffer, targets = device.empty((4,), FLOAT), [device.empty((4,), FLOAT) for _ in range(5)]
    for value, target in enumerate(targets):
        array = ones(value)
        buffer.write(array)
        array[:] = -1
        device.copy(buffer, target)()
    assert api.waits == 0
    for value, target in enumerate(targets):
        np.testing.assert_array_equal(target.read(), ones(value))


def test_writes_that_come_one_a_step_share_pinned_memory(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    buffer = device.empty((4,), FLOAT)
    for value in range(5):
        buffer.write(ones(value))
        device.synchronize()
    assert sum(block.pinned for block in api.blocks.values()) == 1


def test_memory_is_freed_behind_the_work_on_it(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    source, target = device.empty((4,), FLOAT), device.empty((4,), FLOAT)
    source.write(ones(3))
    device.copy(source, target)()
    del source
    np.testing.assert_array_equal(target.read(), ones(3))


def test_nothing_waits_for_what_is_dropped(api: FakeCuda) -> None:
    """Work of others may be enqueued; memory is freed in a later turn."""
    device = CudaDevice(api=api)
    buffers, calls = chain(device)
    calls[0]()
    api.stepping = True
    del buffers[0], calls[0]
    calls[0]()
    api.stepping = False
    assert len(api.blocks) == 3
    device.synchronize()
    assert len(api.blocks) == 2


def test_memory_that_was_dropped_counts_as_free(api: FakeCuda) -> None:
    api.capacity = 64
    device = CudaDevice(api=api)
    for _ in range(3):
        buffers = [device.empty((8,), FLOAT) for _ in range(2)]
        device.copy(*buffers)()
        del buffers
    assert device.free_nbytes() == 64
    with pytest.raises(EngineError, match="allocating 68 bytes of device memory"):
        device.empty((17,), FLOAT)


def test_a_device_that_is_dropped_leaves_nothing(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    buffer = device.empty((4,), FLOAT)
    buffer.write(ones(1))
    del device
    assert len(api.blocks) == 2
    del buffer
    assert api.blocks == {}


def test_a_thread_uses_the_device_of_the_buffers(api: FakeCuda) -> None:
    """CUDA's current device is each thread's own."""
    device = CudaDevice(api=api)
    results: list[np.ndarray] = []

    def work() -> None:
        buffer = device.empty((4,), FLOAT)
        buffer.write(ones(2))
        results.append(buffer.read())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(results[0], ones(2))


def test_free_memory_and_capability(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    free = device.free_nbytes()
    kept = device.empty((1000,), FLOAT)
    assert device.free_nbytes() == free - kept.nbytes
    assert device.compute_capability() == "8.9"


def test_free_memory_of_the_host() -> None:
    free = HostDevice().free_nbytes()
    assert free is None or free > 1 << 20


# graphs


def chain(device: CudaDevice) -> tuple[list[CudaBuffer], list[Callable[[], None]]]:
    """Three buffers, and copies from each to the next."""
    buffers = [device.empty((4,), FLOAT) for _ in range(3)]
    return buffers, [device.copy(*pair) for pair in itertools.pairwise(buffers)]


def test_a_sequence_runs_then_records_then_replays(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    buffers, calls = chain(device)
    count: list[int] = []
    sequence = device.sequence([lambda: count.append(1), *calls])
    for value in range(5):
        buffers[0].write(ones(value))
        sequence()
        np.testing.assert_array_equal(buffers[2].read(), ones(value))
    assert (len(count), api.captures, api.launches) == (2, 1, 4)


@pytest.mark.parametrize("make", [lambda api: CudaDevice(api=api, graphs=False), lambda _: HostDevice()])
def test_a_sequence_without_graphs_makes_its_calls(api: FakeCuda, make: Callable[[FakeCuda], CudaDevice]) -> None:
    device, count = make(api), []
    sequence = device.sequence([lambda: count.append(1), lambda: count.append(2)])
    for _ in range(3):
        sequence()
    assert count == [1, 2] * 3
    assert api.captures == 0


def test_other_buffers_are_recorded_anew(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    for value in (1, 2):
        buffers, calls = chain(device)
        sequence = device.sequence(calls)
        for _ in range(3):
            buffers[0].write(ones(value))
            sequence()
        np.testing.assert_array_equal(buffers[2].read(), ones(value))
        del buffers, calls, sequence
    assert api.captures == 2
    device.synchronize()
    assert api.device_nbytes() == 0
    assert not api.graphs


def test_a_failed_recording_names_itself_and_the_way_out(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    buffers, calls = chain(device)
    sequence = device.sequence([*calls, lambda: device.empty((4,), FLOAT)], "blocks")
    sequence()
    with pytest.raises(EngineError, match=r"blocks cannot be recorded .* allocating 16 bytes .*--no-cuda-graphs"):
        sequence()
    assert not api.graphs
    buffers[0].write(ones(7))
    for call in calls:  # the stream is usable
        call()
    np.testing.assert_array_equal(buffers[2].read(), ones(7))


def test_a_recording_that_waits_fails(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    sequence = device.sequence([device.synchronize])
    sequence()
    with pytest.raises(EngineError, match="calls cannot be recorded"):
        sequence()
    device.synchronize()


def test_an_interrupt_ends_the_recording(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    count: list[int] = []

    def interrupted() -> None:
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt

    sequence = device.sequence([interrupted])
    sequence()
    with pytest.raises(KeyboardInterrupt):
        sequence()
    assert not api.capturing()
    sequence()
    assert (len(count), api.launches) == (3, 1)


def test_what_is_dropped_while_recording_is_freed_afterwards(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    rubbish = [device.empty((4,), FLOAT) for _ in range(2)]

    def drop() -> None:
        if api.capturing():
            rubbish.clear()
            gc.collect()
            device.mark()
            assert len(api.blocks) == 2

    sequence = device.sequence([drop])
    sequence()
    sequence()
    device.synchronize()
    assert not api.blocks


def test_two_threads_do_not_record_each_other(api: FakeCuda) -> None:
    """One thread copies, writes, reads and allocates while the other one records."""
    api.pause_s = 0.005
    device = CudaDevice(api=api)
    failures: list[BaseException] = []
    ready = threading.Barrier(2)

    def work(base: int) -> None:
        try:
            ready.wait()
            for round_ in range(4):
                buffers, calls = chain(device)
                sequence = device.sequence(calls)
                for step in range(4):
                    buffers[0].write(ones(100 * base + 10 * round_ + step))
                    sequence()
                    np.testing.assert_array_equal(buffers[2].read(), ones(100 * base + 10 * round_ + step))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(base,)) for base in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert api.captures == 8


# the fake itself


def test_the_fake_sees_what_it_should() -> None:
    device = CudaDevice(api=(api := FakeCuda()))
    buffer, other = device.empty((4,), FLOAT), device.empty((4,), FLOAT)
    device.synchronize()
    address = buffer.address
    del buffer
    device.synchronize()
    device.enqueue_copy(other.address, address, 16, "DeviceToDevice")
    with pytest.raises(Fault, match="freed"):
        device.synchronize()
    third = device.empty((4,), FLOAT)
    device.enqueue_copy(other.address, third.address + 4, 16, "DeviceToDevice")
    with pytest.raises(Fault, match="4 bytes beyond"):
        device.synchronize()
    with pytest.raises(Fault, match="overlaps its source"):
        device.enqueue_copy(other.address, other.address + 4, 8, "DeviceToDevice")
    readback = device.readback(other)
    (pinned,) = (block for block in api.blocks.values() if block.pinned)
    pinned.data[:] = 0
    readback.start()
    assert np.isnan(pinned.data[:16].view(np.float32)).all(), "values of a copy that has not run"
    device.enqueue_copy(other.address, pinned.address, 16, "HostToDevice")
    pinned.data[:] = 1
    with pytest.raises(Fault, match="changed before its copy ran"):
        device.synchronize()
    device.enqueue_copy(third.address, other.address, 16, "DeviceToDevice")
    with pytest.raises(Fault, match="freed before a copy"):
        api.cudaFree(third.address)
    with pytest.raises(Fault, match="destroyed before an event has run"):
        api.cudaStreamDestroy(device.stream)
    device.synchronize()
    _, event = api.cudaEventCreate()
    api.cudaEventDestroy(event)
    with pytest.raises(Fault, match="event is used after it was destroyed"):
        api.cudaEventRecord(event, device.stream)
    with pytest.raises(Fault, match="deprecated"):
        int(api.cudaStreamCreateWithFlags(1)[1])
