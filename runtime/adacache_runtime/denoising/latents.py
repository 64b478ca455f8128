"""The latents on the device: out to all guidance branches, and forward by a sampler's update."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adacache_engines.contract.device import Buffer, Call, Device
from adacache_engines.contract.engine import Engine
from adacache_runtime.samplers.update import Update

FLOAT32 = np.dtype(np.float32)


class Latents:
    """Latents (samples, channels, frames, height, width) and the velocities that the sampler remembers.

    Args:
        shape: shape of the latents; :meth:`begin` says what they begin with.
        guidance: scale of classifier-free guidance.
        history: velocities that the sampler remembers.
        arithmetic: the bundle's arithmetic engines.
        device: where they run.
        branches: the model's input (branches * samples, ...): all samples of one branch, then those of the next.
        prediction: the model's output.
        calls: of the generation.
        generated: (samples, frames) bool, the frames that an update moves; None = all of them.

    Attributes:
        current: the latents.
        following: what an update gives, before the latents take it.
        generated: that was given.
        velocities: (history, samples, ...).
    """

    def __init__(
        self,
        shape: Sequence[int],
        guidance: float,
        history: int,
        arithmetic: Mapping[str, Engine],
        device: Device,
        branches: Buffer,
        prediction: Buffer,
        calls: int,
        generated: Buffer | None = None,
    ) -> None:
        samples, shape = shape[0], tuple(shape)
        self._initial: NDArray[np.float32] | None = None
        self.current = device.empty(shape, FLOAT32)
        self.velocities = device.empty((history, *shape), FLOAT32)
        self.following = device.empty(shape, FLOAT32)
        self.generated = generated
        scale = device.empty((1,), FLOAT32)
        scale.write(np.array([guidance], np.float32))
        parts = [branches.part(start, start + samples) for start in range(0, branches.shape[0], samples)]
        self._spread: Sequence[Call] = [device.copy(self.current, part) for part in parts]
        self._guide = [
            arithmetic["guide"].bind(
                {"prediction": prediction, "guidance": scale, "velocity": self.velocities.row(slot)}
            )
            for slot in range(history)
        ]
        self._scale = device.empty((samples,), FLOAT32)
        self._weights = device.empty((history, samples), FLOAT32)
        magnitude = device.empty((samples,), FLOAT32)
        self._combine = arithmetic["combine"].bind(
            {
                "latents": self.current,
                "history": self.velocities,
                "scale": self._scale,
                "weights": self._weights,
                "latents_out": self.following,
                "magnitude": magnitude,
            }
        )
        self._advance = (
            device.copy(self.following, self.current)
            if generated is None
            else arithmetic["select"].bind(
                {"mask": generated, "new": self.following, "latents": self.current, "latents_out": self.current}
            )
        )
        self._magnitude = device.readback(magnitude)
        self._magnitudes = device.empty((calls, samples), FLOAT32)
        self._note = [device.copy(magnitude, self._magnitudes.row(call)) for call in range(calls)]

    def begin(self, initial: NDArray[np.float32]) -> None:
        """Begin with ``initial``, float32 of the latents' shape; it is kept for :meth:`restart`."""
        self._initial = initial
        self.restart()

    def restart(self) -> None:
        """Go back to the initial latents, without anything that the sampler remembers."""
        assert self._initial is not None
        self.current.write(self._initial)
        self.velocities.write(np.zeros(self.velocities.shape, np.float32))

    def spread(self) -> None:
        """Copies the latents to the model's input, once a branch."""
        for call in self._spread:
            call()

    def guide(self, slot: int) -> None:
        """Makes a velocity of the model's output."""
        self._guide[slot]()

    def advance(self, update: Update) -> None:
        """Moves the latents on."""
        self._scale.write(update.scale)
        self._weights.write(update.weights)
        self._combine()
        self._advance()

    def ask(self) -> None:
        """Enqueues the question that :meth:`finite` answers."""
        self._magnitude.start()

    def note(self, call: int) -> None:
        """Enqueues what :meth:`first_spoilt` looks at, of a call from 1."""
        self._note[call - 1]()

    def finite(self) -> bool:
        """Whether the update before :meth:`ask` left neither NaN nor infinity; waits for it."""
        return bool(np.isfinite(self._magnitude.result().astype(np.float64)).all())

    def first_spoilt(self) -> int | None:
        """The first call, from 1, that left NaN or infinity, all having been noted; waits for them."""
        finite = np.isfinite(self._magnitudes.read().astype(np.float64)).all(axis=1)
        return None if finite.all() else int(finite.argmin()) + 1

    def read(self) -> NDArray[np.float32]:
        """A copy on the host."""
        return self.current.read().astype(np.float32, copy=False)
