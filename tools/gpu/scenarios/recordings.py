"""Scenarios of recorded sequences, and of threads that share a device."""

import gc
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from adacache_engines.contract.device import Call
from adacache_engines.cuda.device import CudaDevice
from tools.gpu.scenarios.work import FLOAT, chain, forget, large_count, on_threads, refusal, repeated


def recorded_sequences(api: Any) -> None:
    """Run a sequence as it is, record it, and replay it, with other values each time."""
    device = CudaDevice(api=api)
    buffers, calls = chain(device)
    count: list[int] = []
    sequence = device.sequence([lambda: count.append(1), *calls])
    for value in range(6):
        buffers[0].write(repeated(value))
        sequence()
        np.testing.assert_array_equal(buffers[-1].read(), repeated(value))
    assert len(count) == 2, f"the calls were made {len(count)} times; once to run and once to record was expected"


def times_in_recordings(api: Any) -> None:
    """Mark points inside a sequence, which every replay passes anew; their times are those of what lies between."""
    device = CudaDevice(api=api)
    count = large_count(device)
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
        first.write(repeated(value))
        forth()
        first.write(repeated(-value))
        keep()
        back()
        np.testing.assert_array_equal(third.read(), repeated(value))
        np.testing.assert_array_equal(first.read(), repeated(-value))


def sequences_come_and_go(api: Any) -> None:
    """Record sequences on new buffers again and again, dropping each with its last launch on the way."""
    device = CudaDevice(api=api)
    for value in range(8):
        buffers, calls = chain(device)
        sequence = device.sequence(calls)
        for _ in range(3):
            buffers[0].write(repeated(value))
            sequence()
        readback = device.readback(buffers[-1])
        readback.start()
        del buffers, calls, sequence
        np.testing.assert_array_equal(readback.result(), repeated(value))


def failed_recordings(api: Any) -> None:
    """Allocate, and wait, inside a recording: it fails with a message, and the stream goes on."""
    device = CudaDevice(api=api)
    buffers, calls = chain(device)
    forbidden: Mapping[str, Call] = {
        "an allocation": lambda: forget(device.empty((4,), FLOAT)),
        "waiting": device.synchronize,
        "reading": lambda: forget(buffers[0].read()),
    }
    for what, call in forbidden.items():
        sequence = device.sequence([*calls, call], "a scenario")
        sequence()
        message = refusal(sequence, f"recording {what}")
        assert "cannot be recorded" in message, message
        buffers[0].write(repeated(5))
        for each in calls:
            each()
        np.testing.assert_array_equal(buffers[-1].read(), repeated(5))


def interrupted_recordings(api: Any) -> None:
    """Interrupt a recording, and record again."""
    device = CudaDevice(api=api)
    buffers, calls = chain(device)
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
        buffers[0].write(repeated(value))
        sequence()
        np.testing.assert_array_equal(buffers[-1].read(), repeated(value))


def drops_while_recording(api: Any) -> None:
    """Drop buffers, events and graphs inside a recording; they are freed behind it."""
    device = CudaDevice(api=api)
    buffers, calls = chain(device)
    rubbish: list[object] = []
    for _ in range(3):
        others, copies = chain(device)
        recorded = device.sequence(copies)
        recorded()
        recorded()
        rubbish += [*others, *copies, recorded, device.mark(), device.readback(others[0])]
        del others, copies, recorded
    dropped = [[], rubbish]  # by the first run, and by the recording
    sequence = device.sequence([calls[0], lambda: dropped.pop(0).clear(), *calls[1:]])
    for value in range(3):
        buffers[0].write(repeated(value))
        sequence()
        np.testing.assert_array_equal(buffers[-1].read(), repeated(value))
    assert not rubbish


def threads_enqueue_and_record(api: Any) -> None:
    """Write, record, replay and read on several threads that share a device."""
    device = CudaDevice(api=api)

    def work(base: int) -> None:
        for turn in range(4):
            buffers, calls = chain(device)
            sequence = device.sequence(calls)
            for step in range(5):
                value = 1000 * base + 10 * turn + step
                buffers[0].write(repeated(value))
                sequence()
                np.testing.assert_array_equal(buffers[-1].read(), repeated(value))

    on_threads(work, 4)


def drops_on_other_threads(api: Any) -> None:
    """Make buffers on one thread and drop them on others, which have never used the GPU."""
    device = CudaDevice(api=api)
    made: list[list[object]] = []
    for _ in range(4):
        buffers, calls = chain(device)
        sequence = device.sequence(calls)
        sequence()
        sequence()
        made.append([*buffers, *calls, sequence, device.mark()])
        del buffers, calls, sequence

    def work(index: int) -> None:
        made[index].clear()
        gc.collect()

    on_threads(work, len(made))
    buffer = device.empty((4,), FLOAT)
    buffer.write(repeated(1))
    np.testing.assert_array_equal(buffer.read(), repeated(1))
