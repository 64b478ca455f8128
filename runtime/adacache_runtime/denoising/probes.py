"""Measures tensors of a call: how they changed since an earlier call, or whatever else a policy's signals tell.

Signals run on the device; a few numbers a sample come back, and are read when a policy asks for them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import SignalEntry
from adacache_engines.contract.device import Buffer, Call, Device, Readback
from adacache_engines.contract.engine import Engine
from adacache_runtime.caching.measures import space_of
from adacache_runtime.caching.policy import Measure, Measurement
from adacache_runtime.caching.signals.signal import FRAME_AXIS, at_stride

FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class Signals:
    """A bundle's signals.

    Attributes:
        entries: what the manifest says of each signal, by the signal's name.
        engines: engine of each signal's graph, by the graph's name.
    """

    entries: Mapping[str, SignalEntry]
    engines: Mapping[str, Engine]


class Probe:
    """The buffers and bound calls that measure one site.

    Args:
        measure: what is measured, at a site and not at a role.
        new: the buffer that holds the site's tensor in each call.
        signals: the bundle's signals.
        device: the device of the buffers.
        lanes: number of guidance branches, where each is measured apart; 1 = they are measured together.

    Attributes:
        measure: what is measured.
        new: the buffer that was given.
        cached: the buffer that remembers the tensor of an earlier call.
        lanes: number of branches that are measured apart; latents have none.
        keys: names of the numbers in a measurement.
    """

    def __init__(self, measure: Measure, new: Buffer, signals: Signals, device: Device, lanes: int = 1) -> None:
        self.measure, self.new = measure, new
        self._space = space_of(measure.site)
        self.cached = device.empty(new.shape, new.dtype)
        self.lanes = 1 if self._space == "latents" else lanes
        size = new.shape[0] // self.lanes
        parts = [(start, start + size) for start in range(0, new.shape[0], size)]
        self._remember = [device.copy(new.part(*part), self.cached.part(*part)) for part in parts]
        self._calls: list[Call] = []
        self._numbers: dict[str, Readback | None] = {}  # None: the video has no frames so far apart
        frames = new.shape[FRAME_AXIS[self._space]]
        for name in measure.signals:
            graph = signals.entries[name].graphs[self._space]
            inputs = {spec.name for spec in graph.inputs}
            tensors = {key: buffer for key, buffer in (("cached", self.cached), ("new", new)) if key in inputs}
            strides = measure.strides if "earlier" in inputs else (None,)
            for stride in strides:
                keys = [spec.name if stride is None else at_stride(spec.name, stride) for spec in graph.outputs]
                if stride is not None and stride >= frames:
                    self._numbers |= dict.fromkeys(keys)
                    continue
                pairs = {} if stride is None else _pairs(frames, stride, device)
                results = {spec.name: device.empty(new.shape[:1], FLOAT32) for spec in graph.outputs}
                self._calls.append(signals.engines[graph.name].bind({**tensors, **pairs, **results}))
                readbacks = [device.readback(results[spec.name]) for spec in graph.outputs]
                self._numbers |= dict(zip(keys, readbacks, strict=True))
        self._filled, self._shown = (False,) * self.lanes, (False,) * self.lanes

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._numbers)

    def enqueue(self, lanes: Sequence[bool] | None = None) -> bool:
        """Enqueue the signals; return False, and do nothing, where no earlier tensor is remembered yet.

        Args:
            lanes: for each lane, whether the call shows it; None = all.
        """
        asked = lanes or (True,) * self.lanes
        self._shown = tuple(filled and here for filled, here in zip(self._filled, asked, strict=True))
        if any(self._shown):
            for call in self._calls:
                call()
            for readback in self._numbers.values():
                if readback is not None:
                    readback.start()
        return any(self._shown)

    def remember(self, lanes: Sequence[bool] | None = None) -> None:
        """Keep the tensor, so that later ones are compared with it; ``lanes`` as for :meth:`enqueue`."""
        asked = lanes or (True,) * self.lanes
        for copy, here in zip(self._remember, asked, strict=True):
            if here:
                copy()
        self._filled = tuple(before or here for before, here in zip(self._filled, asked, strict=True))

    def forget(self) -> None:
        """Compare the next tensor with none that was remembered so far."""
        self._filled = (False,) * self.lanes

    def result(self, branches: int, per_prompt: bool) -> Measurement:
        """Wait for the numbers of the last ``enqueue``.

        Args:
            branches: number of guidance branches that the hidden state has; latents have none.
            per_prompt: a unit is a prompt with its branches; else the whole batch.

        Returns:
            A measurement with a value for each unit; with lanes, those of the first branch, then those of the next,
            NaN for a branch that the call did not show.
        """
        rows = self.cached.shape[0]
        samples = rows if self._space == "latents" else rows // branches
        nothing = (math.nan,) * (samples if per_prompt else 1)

        def units(readback: Readback | None) -> tuple[float, ...]:
            if readback is None:
                return nothing * self.lanes
            values = readback.result().astype(np.float64).reshape(self.lanes, -1, samples).sum(1)
            numbers: NDArray[np.float64] = values if per_prompt else values.sum(1, keepdims=True)
            lanes = zip(numbers, self._shown, strict=True)
            return tuple(number for lane, shown in lanes for number in (lane.tolist() if shown else nothing))

        return Measurement(self.measure.site, {key: units(readback) for key, readback in self._numbers.items()})


def _pairs(frames: int, stride: int, device: Device) -> dict[str, Buffer]:
    """Return buffers with the indices of the frames to compare: each with the one ``stride`` later."""
    earlier = np.arange(frames - stride, dtype=np.int64)
    buffers = {name: device.empty(earlier.shape, earlier.dtype) for name in ("earlier", "later")}
    buffers["earlier"].write(earlier)
    buffers["later"].write(earlier + stride)
    return buffers
