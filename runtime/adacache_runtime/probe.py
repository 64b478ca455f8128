"""Measures how a residual changed since the last computed call, and how it moves from frame to frame.

The sums are taken on the device; a few numbers a sample come back, read at the start of the next call.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adacache_engines.base import Engine
from adacache_engines.buffers import Buffer, Call, Device, Readback
from adacache_engines.tensors import NUMPY_DTYPES, TensorSpec
from adacache_runtime.policy import Measurement

FRAME_AXIS = 1  # of a probe (batch, frames, tokens, width)


class Probe:
    """One probe site's buffers and bound calls.

    Args:
        site: such as ``temporal.13.attn``.
        spec: of the stage's output.
        arithmetic: the bundle's arithmetic engines.
        device: where they run.
        sizes: of the dynamic axes.
        strides: distances in frames at which motion is measured; those that the clip is too short for give NaN.

    Attributes:
        new: the buffer that the stage writes to.
        kept: it, and the one that remembers it.
    """

    def __init__(
        self,
        site: str,
        spec: TensorSpec,
        arithmetic: Mapping[str, Engine],
        device: Device,
        sizes: Mapping[str, int],
        strides: Sequence[int],
    ) -> None:
        shape = spec.shape(sizes)
        self.site = site
        self.new = device.empty(shape, NUMPY_DTYPES[spec.dtype])
        cached = device.empty(shape, NUMPY_DTYPES[spec.dtype])
        self.kept: tuple[Buffer, ...] = (self.new, cached)
        self._remember = device.copy(self.new, cached)
        self._distance, self._change = _sums(arithmetic["distance"], {"cached": cached, "new": self.new}, device)
        self._motion = [
            _sums(arithmetic["motion"], {"new": self.new, **_pairs(shape[FRAME_AXIS], stride, device)}, device)
            if stride < shape[FRAME_AXIS]
            else None
            for stride in strides
        ]
        self._filled = False

    def measure(self) -> bool:
        """Enqueues the sums and keeps the new residual for next time; False the first time, without any sums."""
        if self._filled:
            motion = [sums for sums in self._motion if sums is not None]
            for call, readbacks in [(self._distance, self._change), *motion]:
                call()
                for readback in readbacks:
                    readback.start()
        self._remember()
        filled, self._filled = self._filled, True
        return filled

    def result(self, branches: int, per_prompt: bool) -> Measurement:
        """Waits for the sums of the last ``measure``; a unit is a prompt with its branches, or the whole batch."""

        def units(readback: Readback) -> tuple[float, ...]:
            samples: NDArray[np.float64] = readback.result().astype(np.float64).reshape(branches, -1).sum(0)
            return tuple(samples.tolist()) if per_prompt else (float(samples.sum()),)

        change, magnitude = (units(readback) for readback in self._change)
        nan = (float("nan"),) * len(change)
        frames = [(nan, nan) if sums is None else tuple(map(units, sums[1])) for sums in self._motion]
        return Measurement(
            self.site,
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
