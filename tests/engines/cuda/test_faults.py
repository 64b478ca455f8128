"""What a GPU tells late, or to somebody else: errors, finalisers, threads, the order in which things are dropped."""

import gc
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from adacache_engines import cuda
from adacache_engines.cuda import pinned
from adacache_engines.cuda.calls import LOST, native_handle
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import DeviceLostError, EngineError
from tests.helpers.fake_cuda import FakeCuda, Status

FLOAT = np.dtype(np.float32)


@pytest.fixture
def api() -> Iterator[FakeCuda]:
    api = FakeCuda()
    yield api
    assert api.faults == []


def ones(value: float, count: int = 4) -> np.ndarray:
    return np.full(count, value, np.float32)


def recorded(device: CudaDevice) -> tuple[list[Any], Callable[[], None]]:
    """Two buffers, and a recorded sequence that copies the first to the second and marks that it did."""
    buffers: list[Any] = [device.empty((4,), FLOAT) for _ in range(2)]
    sequence = device.sequence([device.copy(*buffers), device.marker()])
    sequence()
    sequence()
    return buffers, sequence


# the bindings


def test_handles_and_errors_are_the_bindings_own() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    assert native_handle(runtime.cudaStream_t(77)) == 77
    told = {each.name for each in runtime.cudaError_t if "be terminated and relaunched" in flat(each.__doc__)}
    assert told == LOST


def flat(text: str | None) -> str:
    return " ".join((text or "").split())


@pytest.mark.parametrize("name", sorted(name for name in dir(FakeCuda) if name.startswith("cuda")))
def test_the_fake_has_calls_that_the_bindings_have(name: str) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    assert hasattr(runtime, name)


# errors


def test_an_error_of_earlier_work_is_told_as_such(api: FakeCuda) -> None:
    """It comes with a later call, and with every one from then on; nothing that is dropped raises or hangs."""
    device = CudaDevice(api=api)
    buffers, sequence = recorded(device)
    readback = device.readback(buffers[1])
    sequence()
    api.crash = Status.cudaErrorIllegalAddress
    readback.start()
    message = "cudaErrorIllegalAddress. Work that was enqueued before has failed"
    with pytest.raises(DeviceLostError, match=f"waiting for the GPU: {message}"):
        readback.result()
    later: dict[str, Callable[[], object]] = {
        "write": lambda: buffers[0].write(ones(1)),
        "read": buffers[0].read,
        "allocate": lambda: device.empty((4,), FLOAT),
        "launch": sequence,
        "record": device.sequence([device.copy(*buffers)]),
        "mark": device.mark,
        "ask": device.free_nbytes,
    }
    for call in later.values():
        with pytest.raises(DeviceLostError, match=message):
            call()
    buffers.clear()
    later.clear()
    del sequence, readback, call
    gc.collect()
    with pytest.raises(DeviceLostError, match=message):
        device.synchronize()


def test_a_call_that_does_not_wait_may_tell_an_earlier_error(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    buffers, _ = recorded(device)
    api.crash = Status.cudaErrorIllegalAddress
    with pytest.raises(DeviceLostError):
        buffers[1].read()
    with pytest.raises(DeviceLostError, match="enqueued before has failed"):
        device.copy(*buffers)()


def test_a_recording_ends_when_the_gpu_is_lost_inside_it(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    buffers = [device.empty((4,), FLOAT) for _ in range(2)]

    def lose() -> None:
        if api.capturing():
            api.broken = Status.cudaErrorIllegalAddress

    sequence = device.sequence([lose, device.copy(*buffers)])
    sequence()
    with pytest.raises(EngineError, match="enqueued before has failed"):
        sequence()
    assert not device.is_recording


def test_a_failure_that_was_dealt_with_is_nobody_elses(api: FakeCuda) -> None:
    """CUDA keeps the last error for whoever asks next, such as a library after its own launch."""
    device = CudaDevice(api=api)

    def launched() -> None:
        with device.turn():
            api.launch(device.stream, "a kernel of a library", [], [], lambda *_: None)

    api.capacity = 64
    buffers = [device.empty((8,), FLOAT) for _ in range(2)]
    device.copy(*buffers)()
    del buffers
    buffers = [device.empty((8,), FLOAT) for _ in range(2)]  # at first there is too little memory
    launched()
    with pytest.raises(EngineError, match="allocating 4096 bytes"):
        device.empty((1024,), FLOAT)
    launched()
    device.copy(*buffers)()
    del buffers[0]
    device.mark()  # asks for the work on it, which is not ready
    launched()
    sequence = device.sequence([lambda: device.empty((1,), FLOAT)])
    sequence()
    with pytest.raises(EngineError, match="cannot be recorded"):
        sequence()
    launched()


# finalisers


FOLDER = str(Path(cuda.__file__).parent)


def test_finalisers_may_run_in_every_call_of_cuda() -> None:
    for wanted in itertools.count():
        moments = itertools.count()

        def watch(api: FakeCuda, finaliser: Callable[[], None], moments: Any = moments, wanted: int = wanted) -> None:
            api.finaliser = lambda: finaliser() if next(moments) == wanted else None

        if not finalised(watch):
            break
    assert wanted > 100


def test_finalisers_may_run_at_every_line() -> None:
    """Of this project's code for CUDA: at the first time that a line is reached."""
    lines: set[tuple[str, int]] = set()

    def watch(_: FakeCuda, finaliser: Callable[[], None]) -> None:
        def line(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal finaliser
            here = (frame.f_code.co_filename, frame.f_lineno)
            if event == "line" and here not in lines and finaliser is not nothing:
                lines.add(here)
                now, finaliser = finaliser, nothing
                now()
            return line

        sys.settrace(lambda frame, *_: line if frame.f_code.co_filename.startswith(FOLDER) else None)

    while finalised(watch):
        pass
    assert len(lines) > 80


def nothing() -> None:
    pass


def finalised(watch: Callable[[FakeCuda, Callable[[], None]], None]) -> bool:
    """Drop buffers, marks, graphs and readbacks with work on them at one moment; tell whether the moment came.

    ``watch`` sees to it that the finaliser runs then, through the runtime or the interpreter's trace.
    """
    api = FakeCuda()
    device = CudaDevice(api=api)
    rubbish: list[Any] = []
    buffers, sequence = recorded(device)
    sequence()
    rubbish += [*buffers, sequence, device.mark(), device.readback(buffers[0])]
    del buffers, sequence
    came = []

    def finaliser() -> None:
        came.append(True)
        rubbish.clear()

    trace = sys.gettrace()
    watch(api, finaliser)
    try:
        values = used(device)
    finally:
        sys.settrace(trace)
        api.finaliser = None
    np.testing.assert_array_equal(values, [ones(1), ones(2), ones(3)])
    if came:
        device.synchronize()
        assert api.device_nbytes() == 0, "memory that was dropped is still taken"
        assert not api.graphs
    rubbish.clear()
    del device
    assert api.faults == []
    assert api.blocks == {}
    return bool(came)


def used(device: CudaDevice) -> list[np.ndarray]:
    """Use everything that a device has, with something to free on the way."""
    buffers = [device.empty((4,), FLOAT) for _ in range(2)]
    sequence = device.sequence([device.copy(*buffers), device.marker()])
    values = []
    for value in (1, 2, 3):
        buffers[0].write(ones(value))
        device.copy(buffers[0], device.empty((4,), FLOAT))()
        sequence()
        values.append(buffers[1].read())
    device.free_nbytes()
    return values


def test_a_finaliser_leaves_another_gpus_work_alone() -> None:
    """It may come in a recording, or between the choice of the other GPU and its use."""
    api = FakeCuda(devices=2)
    one, other = (CudaDevice(index, api) for index in range(2))
    for rubbish in ([recorded(other), other.mark(), other.readback(other.empty((4,), FLOAT))], [other]):
        dropped = [[], rubbish]
        buffers = [one.empty((4,), FLOAT) for _ in range(2)]
        if rubbish == [other]:
            del other
        del rubbish
        sequence = one.sequence([lambda dropped=dropped: dropped.pop(0).clear(), one.copy(*buffers)])
        for value in range(3):
            buffers[0].write(ones(value))
            sequence()
            np.testing.assert_array_equal(buffers[1].read(), ones(value))
    assert api.faults == []
    assert api.device_nbytes(1) == 0


def test_each_thread_has_its_own_current_gpu() -> None:
    api = FakeCuda(devices=2)
    devices = [CudaDevice(index, api) for index in range(2)]
    errors: list[BaseException] = []
    ready = threading.Barrier(2)

    def work(device: CudaDevice) -> None:
        try:
            ready.wait()
            for value in range(20):
                buffers, sequence = recorded(device)
                buffers[0].write(ones(value))
                sequence()
                np.testing.assert_array_equal(buffers[1].read(), ones(value))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for device in devices:
        buffer = device.empty((4,), FLOAT)
        assert api.blocks[buffer.address].device == device.index
    assert errors == []
    assert api.faults == []


# order


def test_everything_may_be_dropped_in_any_order() -> None:
    """With work on the way: each is freed after what uses it, and the stream at the end."""
    for order in itertools.permutations(("device", "source", "target", "sequence", "mark", "readback")):
        api = FakeCuda()
        device = CudaDevice(api=api)
        (source, target), sequence = recorded(device)
        held = {"device": device, "source": source, "target": target, "sequence": sequence}
        held |= {"mark": device.mark(), "readback": device.readback(target)}
        sequence()
        held["readback"].start()
        del device, source, target, sequence
        for name in order:
            del held[name]
        assert api.faults == []
        assert api.blocks == {}
        assert api.graphs == []
        assert all(stream.destroyed for stream in api._streams.values())


# pinned memory


def test_a_host_buffer_is_pinned_once(api: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often, and into however many buffers, values travel; large ones go in pieces."""
    monkeypatch.setattr(pinned, "PIECE_NBYTES", 1 << 14)
    device = CudaDevice(api=api)
    large = np.arange(10_000, dtype=np.float32)

    def there_and_back() -> None:
        buffer = device.empty(large.shape, FLOAT)
        buffer.write(large)
        read = buffer.read()
        np.testing.assert_array_equal(read, large)
        read[:] = 0  # it is the reader's

    there_and_back()
    pins = api.pins
    for _ in range(4):
        there_and_back()
    assert api.pins == pins


def test_pinned_memory_is_bounded(api: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where much is written before the GPU is there, the oldest copy is waited for."""
    monkeypatch.setattr(pinned, "PIECE_NBYTES", 1 << 14)
    monkeypatch.setattr(pinned, "ENOUGH_NBYTES", 1 << 17)
    device = CudaDevice(api=api)
    buffer = device.empty((4096,), FLOAT)
    targets = [device.empty((4096,), FLOAT) for _ in range(40)]
    for value, target in enumerate(targets):
        buffer.write(ones(value, 4096))
        device.copy(buffer, target)()
    assert api.pinned_nbytes() <= 1 << 17
    for value, target in enumerate(targets):
        np.testing.assert_array_equal(target.read(), ones(value, 4096))


def test_values_do_not_travel_in_a_recording(api: FakeCuda) -> None:
    """The replays would all have the same."""
    device = CudaDevice(api=api)
    buffer = device.empty((4,), FLOAT)
    for call in (lambda: buffer.write(ones(1)), lambda: buffer.read()):
        sequence = device.sequence([call])
        sequence()
        with pytest.raises(EngineError, match="cannot be read or written while a graph is recorded"):
            sequence()
        buffer.write(ones(2))
        np.testing.assert_array_equal(buffer.read(), ones(2))


def test_a_large_readback_is_refused(api: FakeCuda) -> None:
    buffer = CudaDevice(api=api).empty((4,), FLOAT)
    buffer.nbytes = pinned.PIECE_NBYTES + 1
    with pytest.raises(ValueError, match="a readback of 16777217 bytes"):
        buffer.device.readback(buffer)


# marks inside recordings


def test_a_mark_in_a_sequence_is_passed_by_each_replay(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    first, last = device.marker(), device.marker()
    buffers = [device.empty((4,), FLOAT) for _ in range(2)]
    sequence = device.sequence([first, device.copy(*buffers), last])
    for _ in range(4):
        sequence()
        assert not device.reached(last.handle)
        assert device.milliseconds(first, last) == 1.5
