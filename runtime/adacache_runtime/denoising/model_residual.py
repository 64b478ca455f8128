"""The residual of the whole model: what a call's velocity is beyond the latents that go in, v - x.

Guidance is an affine sum of branches that all begin with the same latents, so it is the same to keep this of the
guided velocity or of each branch. All of it is linear, so the sampler's ``combine`` graph does it.
"""

from collections.abc import Mapping

import numpy as np

from adacache_engines.contract.device import Buffer, Call, Device
from adacache_engines.contract.engine import Engine

FLOAT32 = np.dtype(np.float32)


class ModelResidual:
    """
    Args:
        kept: residuals that are remembered.
        current: the latents (samples, channels, frames, height, width) float32.
        velocities: (history, ...) that the sampler remembers.
        arithmetic: the bundle's arithmetic engines.
        device: where they run.

    Attributes:
        residuals: (kept, samples, ...) the newest first.
    """

    def __init__(
        self, kept: int, current: Buffer, velocities: Buffer, arithmetic: Mapping[str, Engine], device: Device
    ) -> None:
        samples = current.shape[0]
        self.residuals = device.empty((kept, *current.shape), FLOAT32)
        rows = [self.residuals.row(place) for place in range(kept)]
        self._moves = [device.copy(rows[place - 1], rows[place]) for place in range(kept - 1, 0, -1)]
        one, minus_one = (_filled(device, (samples,), value) for value in (1.0, -1.0))
        alone = _filled(device, (1, samples), 1.0)
        self._weights = _filled(device, (kept, samples), 1.0)
        unused = device.empty((samples,), FLOAT32)

        def bind(history: Buffer, scale: Buffer, weights: Buffer, out: Buffer) -> Call:
            tensors = {"history": history, "scale": scale, "weights": weights, "latents_out": out}
            return arithmetic["combine"].bind({"latents": current, "magnitude": unused, **tensors})

        slots = range(velocities.shape[0])
        self._keep = [bind(velocities.part(slot, slot + 1), minus_one, alone, rows[0]) for slot in slots]
        self._reuse = [bind(self.residuals, one, self._weights, velocities.row(slot)) for slot in slots]

    def keep(self, slot: int) -> None:
        """Takes the residual of the velocity in a slot."""
        for move in self._moves:
            move()
        self._keep[slot]()

    def reuse(self, slot: int, weights: tuple[float, ...]) -> None:
        """Makes a velocity of the latents and the kept residuals, the newest first."""
        kept, samples = self._weights.shape
        values = np.array(weights or (1.0, *(0.0,) * (kept - 1)), np.float32)
        self._weights.write(np.repeat(values[:, None], samples, axis=1))
        self._reuse[slot]()


def _filled(device: Device, shape: tuple[int, ...], value: float) -> Buffer:
    buffer = device.empty(shape, FLOAT32)
    buffer.write(np.full(shape, value, np.float32))
    return buffer
