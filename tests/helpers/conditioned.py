"""What tests share with ``test_conditioning``."""

import numpy as np
from numpy.typing import NDArray

from tests.helpers.reference import OPEN_SORA, arrays

MASK = np.array([[0, 1, 0.45, 1, 1], [1, 0.7, 1, 0, 1]], np.float32)


Floats = NDArray[np.float32]


def drawn(seed: int, *before: int) -> Floats:
    shape = arrays(OPEN_SORA / "sampling_A.npz")["z0"].shape
    return np.random.default_rng(seed).standard_normal((*before, *shape), np.float32)
