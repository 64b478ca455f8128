"""The latents on the device: out to all guidance branches, and forward by a sampler's update."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adacache_engines.contract.device import Buffer, Call, Device
from adacache_engines.contract.engine import Engine
from adacache_runtime.samplers.update import Update

FLOAT32 = np.dtype(np.float32)
ALIGNED = 64  # float32 numbers in the 256 bytes at whose multiples the engines of a GPU take tensors as they are


def filled(device: Device, shape: tuple[int, ...], value: float) -> Buffer:
    """Allocate a float32 buffer with one value everywhere."""
    buffer = device.empty(shape, FLOAT32)
    buffer.write(np.full(shape, value, np.float32))
    return buffer


class Latents:
    """The latents of a generation, and the short history that its sampler looks back on.

    Args:
        shape: (samples, channels, frames, height, width); :meth:`begin` says what the latents begin with.
        history: number of entries that the sampler remembers.
        keeps_velocity: every entry of the history is a call's velocity as it is; else it is h = c z + d v.
        arithmetic: the bundle's arithmetic engines.
        device: device of the buffers.
        calls: number of calls of the generation.
        generated: (samples, frames) bool, the frames that an update moves; None = all of them.

    Attributes:
        current: the latents.
        following: the latents that an update gives, before they become the current ones.
        generated: the frames that an update moves, as given.
        history: (history, samples, channels, frames, height, width) float32.
    """

    def __init__(
        self,
        shape: Sequence[int],
        history: int,
        keeps_velocity: bool,
        arithmetic: Mapping[str, Engine],
        device: Device,
        calls: int,
        generated: Buffer | None = None,
    ) -> None:
        samples, shape = shape[0], tuple(shape)
        self._initial: NDArray[np.float32] | None = None
        self._device, self._combine = device, arithmetic["combine"]
        self.current = device.empty(shape, FLOAT32)
        self.history = device.empty((history, *shape), FLOAT32)
        self._velocity = None if keeps_velocity else device.empty((1, *shape), FLOAT32)
        self.following = device.empty(shape, FLOAT32)
        self.generated = generated
        # one write a call: a, b (history), and c, d where an entry is no velocity; each begins where a GPU can read it
        longest = -(-history // ALIGNED) * ALIGNED
        self._coefficients = device.empty((2 if keeps_velocity else 4, longest, samples), FLOAT32)
        magnitude = device.empty((samples,), FLOAT32)
        self._unused = device.empty((samples,), FLOAT32)
        scale, weights = self._coefficients.row(0).row(0), self._coefficients.row(1).part(0, history)
        moved = self._bound(self.history, scale, weights, self.following, magnitude)
        move = (
            device.copy(self.following, self.current)
            if generated is None
            else arithmetic["select"].bind(
                {"mask": generated, "new": self.following, "latents": self.current, "latents_out": self.current}
            )
        )
        self._advance = [moved, move]
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
        self.history.write(np.zeros(self.history.shape, np.float32))

    def spread(self, target: Buffer) -> list[Call]:
        """Return calls that copy the latents to a model's input (branches * samples, ...), once for each branch."""
        samples, rows = self.current.shape[0], target.shape[0]
        parts = [target.part(start, start + samples) for start in range(0, rows, samples)]
        return [self._device.copy(self.current, part) for part in parts]

    def velocity(self, slot: int) -> Buffer:
        """Return the buffer (samples, ...) that takes the velocity of a call with this slot of the history."""
        return self.velocity_alone(slot).row(0)

    def velocity_alone(self, slot: int) -> Buffer:
        """Return the same buffer as a history of one entry, (1, samples, ...)."""
        return self.history.part(slot, slot + 1) if self._velocity is None else self._velocity

    def advance(self, slot: int) -> list[Call]:
        """Return calls that take a velocity into the history and move the latents on, by the written coefficients."""
        if self._velocity is None:
            return self._advance
        c, d = self._coefficients.row(2).row(0), self._coefficients.row(3).part(0, 1)
        keep = self._bound(self._velocity, c, d, self.history.row(slot), self._unused)
        return [keep, *self._advance]

    def write(self, update: Update) -> None:
        """Write the coefficients of an update for the calls of :meth:`advance`."""
        values = np.zeros(self._coefficients.shape, np.float32)
        values[0, 0], values[1, : len(update.weights)] = update.scale, update.weights
        if self._velocity is not None:
            values[2, 0], values[3, 0] = update.entry()
        self._coefficients.write(values)

    def ask(self) -> None:
        """Enqueue the question that :meth:`finite` answers."""
        self._magnitude.start()

    def note(self, call: int) -> None:
        """Enqueue what :meth:`first_spoilt` looks at, for a call from 1."""
        self._note[call - 1]()

    def finite(self) -> bool:
        """Return whether the update before :meth:`ask` left neither NaN nor infinity; wait for it."""
        return bool(np.isfinite(self._magnitude.result().astype(np.float64)).all())

    def first_spoilt(self) -> int | None:
        """Return the first call, from 1, that left NaN or infinity, all having been noted; wait for them."""
        finite = np.isfinite(self._magnitudes.read().astype(np.float64)).all(axis=1)
        return None if finite.all() else int(finite.argmin()) + 1

    def read(self) -> NDArray[np.float32]:
        """Return a copy of the latents on the host."""
        return self.current.read().astype(np.float32, copy=False)

    def _bound(self, history: Buffer, scale: Buffer, weights: Buffer, out: Buffer, magnitude: Buffer) -> Call:
        tensors = {"history": history, "scale": scale, "weights": weights, "latents_out": out}
        return self._combine.bind({"latents": self.current, "magnitude": magnitude, **tensors})
