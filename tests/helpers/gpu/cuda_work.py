"""Small pieces of work on a CUDA device, for tests of what goes on around it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from adacache_engines.cuda.device import CudaDevice

FLOAT = np.dtype(np.float32)


def ones(value: float, count: int = 4) -> np.ndarray:
    return np.full(count, value, np.float32)


def recorded(device: CudaDevice) -> tuple[list[Any], Callable[[], None]]:
    """Two buffers, and a recorded sequence that copies the first to the second and marks that it did."""
    buffers: list[Any] = [device.empty((4,), FLOAT) for _ in range(2)]
    sequence = device.sequence([device.copy(*buffers), device.marker()])
    sequence()
    sequence()
    return buffers, sequence
