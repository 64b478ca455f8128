"""The latents on the device: out to all guidance branches, and forward by a sampler's update."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adacache_engines.base import Engine
from adacache_engines.buffers import Buffer, Call, Device
from adacache_runtime.samplers import Update

FLOAT32 = np.dtype(np.float32)


class Latents:
    """Latents (samples, channels, frames, height, width) and the velocities that the sampler remembers.

    Args:
        initial: the noise to begin with, float32.
        guidance: scale of classifier-free guidance.
        history: velocities that the sampler remembers.
        arithmetic: the bundle's arithmetic engines.
        device: where they run.
        branches: the model's input (branches * samples, ...): all samples of one branch, then those of the next.
        prediction: the model's output.
    """

    def __init__(
        self,
        initial: NDArray[np.float32],
        guidance: float,
        history: int,
        arithmetic: Mapping[str, Engine],
        device: Device,
        branches: Buffer,
        prediction: Buffer,
    ) -> None:
        samples = initial.shape[0]
        self._current = device.empty(initial.shape, FLOAT32)
        self._current.write(initial)
        following = device.empty(initial.shape, FLOAT32)
        velocities = device.empty((history, *initial.shape), FLOAT32)
        scale = device.empty((1,), FLOAT32)
        scale.write(np.array([guidance], np.float32))
        parts = [branches.part(start, start + samples) for start in range(0, branches.shape[0], samples)]
        self._spread: Sequence[Call] = [device.copy(self._current, part) for part in parts]
        self._guide = [
            arithmetic["guide"].bind({"prediction": prediction, "guidance": scale, "velocity": velocities.row(slot)})
            for slot in range(history)
        ]
        self._scale = device.empty((samples,), FLOAT32)
        self._weights = device.empty((history, samples), FLOAT32)
        magnitude = device.empty((samples,), FLOAT32)
        self._combine = arithmetic["combine"].bind(
            {
                "latents": self._current,
                "history": velocities,
                "scale": self._scale,
                "weights": self._weights,
                "latents_out": following,
                "magnitude": magnitude,
            }
        )
        self._advance = device.copy(following, self._current)
        self._magnitude = device.readback(magnitude)

    def spread(self) -> None:
        """Copies the latents to the model's input, once a branch."""
        for call in self._spread:
            call()

    def update(self, update: Update) -> None:
        """Takes the model's output in and moves the latents on."""
        self._guide[update.slot]()
        self._scale.write(update.scale)
        self._weights.write(update.weights)
        self._combine()
        self._advance()
        self._magnitude.start()

    def finite(self) -> bool:
        """Whether the last update left neither NaN nor infinity; waits for it."""
        return bool(np.isfinite(self._magnitude.result().astype(np.float64)).all())

    def read(self) -> NDArray[np.float32]:
        """A copy on the host."""
        return self._current.read().astype(np.float32, copy=False)
