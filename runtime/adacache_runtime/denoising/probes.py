"""Measures tensors of a call: how they changed since an earlier call, or whatever else a policy's signals tell.

Signals run on the device; a few numbers a sample come back, and are read when a policy asks for them.
"""

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
        branches: number of guidance branches that a call evaluates.
        by_branch: each branch is measured by itself, and compared with its own earlier tensor. Latents and velocities
            have no branches.

    Attributes:
        measure: what is measured.
        new: the buffer that was given.
        cached: the buffer that remembers the tensor of an earlier call.
        keys: names of the numbers in a measurement.
    """

    def __init__(
        self,
        measure: Measure,
        new: Buffer,
        signals: Signals,
        device: Device,
        branches: int,
        by_branch: bool = False,
    ) -> None:
        self.measure, self.new = measure, new
        self._space = space_of(measure.site)
        branched = self._space != "latents"
        self._samples = new.shape[0] // branches if branched else new.shape[0]
        self._by_branch = by_branch and branched
        self.cached = device.empty(new.shape, new.dtype)
        copies = [(new, self.cached)]
        if self._by_branch:
            rows = [(branch * self._samples, (branch + 1) * self._samples) for branch in range(branches)]
            copies = [(new.part(*part), self.cached.part(*part)) for part in rows]
        self._remember = [device.copy(*pair) for pair in copies]
        self._calls: list[Call] = []
        self._numbers: dict[str, Readback | None] = {}  # None: the video has no frames so far apart
        frames = new.shape[FRAME_AXIS[self._space]] if self._space in FRAME_AXIS else 1
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
        self._filled = [False] * len(self._remember)
        self._shown: list[int] = []

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._numbers)

    def due(self, rows: Sequence[bool]) -> list[int]:
        """Return the parts that are measured where these branches are: each branch, or all of them or none as one."""
        return [branch for branch, asked in enumerate(rows) if asked] if self._by_branch else [0] * all(rows)

    def enqueue(self, parts: Sequence[int] = (0,)) -> bool:
        """Enqueue the signals for some parts.

        Return False, and do nothing, where no earlier tensor of one of them is remembered yet.
        """
        self._shown = list(parts)
        ready = bool(parts) and all(self._filled[part] for part in parts)
        if ready:
            for call in self._calls:
                call()
            for readback in self._numbers.values():
                if readback is not None:
                    readback.start()
        return ready

    def remember(self, parts: Sequence[int] = (0,)) -> None:
        """Keep the tensor's parts, so that later ones are compared with them."""
        for part in parts:
            self._remember[part]()
            self._filled[part] = True

    def forget(self) -> None:
        """Compare the next tensor with none that was remembered so far."""
        self._filled = [False] * len(self._filled)

    def result(self, per_prompt: bool) -> list[Measurement]:
        """Wait for the numbers of the last ``enqueue``; return a measurement for each part.

        Args:
            per_prompt: a unit is a prompt with its branches; else the whole batch.
        """
        by_sample: dict[str, NDArray[np.float64]] = {}  # (branches, samples)
        for key, readback in self._numbers.items():
            rows = np.full(self.new.shape[0], np.nan) if readback is None else readback.result().astype(np.float64)
            by_sample[key] = rows.reshape(-1, self._samples)

        def units(sums: NDArray[np.float64]) -> tuple[float, ...]:
            return tuple(sums.tolist()) if per_prompt else (float(sums.sum()),)

        site = self.measure.site
        if not self._by_branch:
            return [Measurement(site, {key: units(rows.sum(0)) for key, rows in by_sample.items()})]
        return [
            Measurement(site, {key: units(rows[part]) for key, rows in by_sample.items()}, part) for part in self._shown
        ]


def _pairs(frames: int, stride: int, device: Device) -> dict[str, Buffer]:
    """Return buffers with the indices of the frames to compare: each with the one ``stride`` later."""
    earlier = np.arange(frames - stride, dtype=np.int64)
    buffers = {name: device.empty(earlier.shape, earlier.dtype) for name in ("earlier", "later")}
    buffers["earlier"].write(earlier)
    buffers["later"].write(earlier + stride)
    return buffers
