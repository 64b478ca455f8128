"""Measures how a tensor changed from call to call, and how it moves from frame to frame.

The sums are taken on the device; a few numbers a sample come back, read when a policy asks for them.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from adacache_engines.contract.device import Buffer, Call, Device, Readback
from adacache_engines.contract.engine import Engine
from adacache_runtime.caching.policy import LATENTS, VELOCITY, Measure, Measurement

FRAME_AXIS = 1  # of a probe (batch, frames, tokens, width)


class Probe:
    """One measured site's buffers and bound calls.

    Args:
        measure: what is measured there.
        new: the buffer that holds the site's tensor in each call.
        arithmetic: the bundle's arithmetic engines.
        device: where they run.

    Attributes:
        cached: the buffer that remembers the tensor.
    """

    def __init__(self, measure: Measure, new: Buffer, arithmetic: Mapping[str, Engine], device: Device) -> None:
        self.measure = measure
        self.cached = device.empty(new.shape, new.dtype)
        self._remember = device.copy(new, self.cached)
        earlier, now = (new, self.cached) if measure.site == VELOCITY else (self.cached, new)
        engine = arithmetic["change" if measure.site in (LATENTS, VELOCITY) else "distance"]
        self._distance, self._change = _sums(engine, {"cached": earlier, "new": now}, device)
        self._motion = [
            _sums(arithmetic["motion"], {"new": new, **_pairs(new.shape[FRAME_AXIS], stride, device)}, device)
            if stride < new.shape[FRAME_AXIS]
            else None
            for stride in measure.strides
        ]
        self._filled = False

    def enqueue(self) -> bool:
        """Enqueues the sums; False, and nothing is done, where there is nothing to compare with yet."""
        if self._filled:
            motion = [sums for sums in self._motion if sums is not None]
            for call, readbacks in [(self._distance, self._change), *motion]:
                call()
                for readback in readbacks:
                    readback.start()
        return self._filled

    def remember(self) -> None:
        """Keeps the tensor, to compare later ones with it."""
        self._remember()
        self._filled = True

    def forget(self) -> None:
        """Compare the next tensor with none that was remembered so far."""
        self._filled = False

    def result(self, branches: int, per_prompt: bool) -> Measurement:
        """Waits for the sums of the last ``enqueue``; a unit is a prompt with its branches, or the whole batch."""

        def units(readback: Readback) -> tuple[float, ...]:
            sums = readback.result().astype(np.float64)
            samples: NDArray[np.float64] = sums if latents else sums.reshape(branches, -1).sum(0)
            return tuple(samples.tolist()) if per_prompt else (float(samples.sum()),)

        latents = self.measure.site in (LATENTS, VELOCITY)  # which have no branches
        change, magnitude = (units(readback) for readback in self._change)
        nan = (float("nan"),) * len(change)
        frames = [(nan, nan) if sums is None else tuple(map(units, sums[1])) for sums in self._motion]
        return Measurement(
            self.measure.site,
            change,
            magnitude,
            tuple(change for change, _ in frames),
            tuple(magnitude for _, magnitude in frames),
        )


def _sums(engine: Engine, inputs: Mapping[str, Buffer], device: Device) -> tuple[Call, list[Readback]]:
    batch = inputs["new"].shape[:1]
    outputs = {name: device.empty(batch, np.dtype(np.float32)) for name in ("change", "magnitude")}
    return engine.bind({**inputs, **outputs}), [device.readback(buffer) for buffer in outputs.values()]


def _pairs(frames: int, stride: int, device: Device) -> dict[str, Buffer]:
    """Indices of the frames to compare: each with the one ``stride`` later."""
    earlier = np.arange(frames - stride, dtype=np.int64)
    buffers = {name: device.empty(earlier.shape, earlier.dtype) for name in ("earlier", "later")}
    buffers["earlier"].write(earlier)
    buffers["later"].write(earlier + stride)
    return buffers
