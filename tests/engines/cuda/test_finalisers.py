"""Finalisers, threads and the order of dropping: whatever goes on, work has its memory until it is done."""

import itertools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from adacache_engines import cuda
from adacache_engines.cuda.device import CudaDevice
from tests.helpers.gpu.cuda_work import FLOAT, ones, recorded
from tests.helpers.gpu.fake_cuda import FakeCuda, Status

FOLDER = str(Path(cuda.__file__).parent)


def test_finalisers_may_run_in_every_call_of_cuda() -> None:
    for wanted in itertools.count():
        moments = itertools.count()

        def watch(api: FakeCuda, finaliser: Callable[[], None], moments: Any = moments, wanted: int = wanted) -> None:
            api.finaliser = lambda: finaliser() if next(moments) == wanted else None

        if not finalised(watch):
            break
    assert wanted > 100


@pytest.mark.slow
def test_finalisers_may_run_at_every_line() -> None:
    """A finaliser runs the first time that each line of this project's code for CUDA is reached."""
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
    """A finaliser may run inside a recording, or between the choice of the other GPU and its use."""
    api = FakeCuda(devices=2)
    one, other = (CudaDevice(index, api) for index in range(2))

    def kernel() -> None:
        """Launch as a library does, which needs its stream's GPU to be the current one."""
        assert api.launch(one.stream, "a kernel", [], [], lambda *_: None) == Status.cudaSuccess

    for rubbish in ([recorded(other), other.mark(), other.readback(other.empty((4,), FLOAT))], [other]):
        dropped = [[], rubbish]
        buffers = [one.empty((4,), FLOAT) for _ in range(2)]
        if rubbish == [other]:
            del other
        del rubbish
        sequence = one.sequence([lambda dropped=dropped: dropped.pop(0).clear(), kernel, one.copy(*buffers)])
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


def test_everything_may_be_dropped_in_any_order() -> None:
    """While work is enqueued, each object is freed after the work that uses it, and the stream is freed last."""
    for order in itertools.permutations(("device", "buffers", "sequence", "mark", "readback")):
        api = FakeCuda()
        device = CudaDevice(api=api)
        buffers, sequence = recorded(device)
        held = {"device": device, "buffers": buffers, "sequence": sequence}
        held |= {"mark": device.mark(), "readback": device.readback(buffers[1])}
        sequence()
        held["readback"].start()
        del device, buffers, sequence
        for name in order:
            del held[name]
        assert api.faults == []
        assert api.blocks == {}
        assert api.graphs == []
        assert all(stream.destroyed for stream in api._streams.values())
