"""Values on their way between host and device, and marks in the work."""

import numpy as np
import pytest

from adacache_engines.cuda import pinned
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import EngineError
from tests.helpers.gpu.cuda_work import FLOAT, ones
from tests.helpers.gpu.fake_cuda import FakeCuda


def test_a_host_buffer_is_pinned_once(api: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is pinned once however often values travel to however many buffers; large tensors go in pieces."""
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
    """Writes that are faster than the GPU wait for the oldest copy, and pin no further memory."""
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
    """All replays of the recording would have the same value."""
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


def test_a_mark_in_a_sequence_is_passed_by_each_replay(api: FakeCuda) -> None:
    device = CudaDevice(api=api)
    first, last = device.marker(), device.marker()
    buffers = [device.empty((4,), FLOAT) for _ in range(2)]
    sequence = device.sequence([first, device.copy(*buffers), last])
    for _ in range(4):
        sequence()
        assert not device.reached(last.handle)
        assert device.milliseconds(first, last) == 1.5
