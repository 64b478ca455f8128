"""From a decision to a sequence of bound calls.

A plan belongs to one generation. It owns the tensors between the stages, binds engines to them, and gives for each
decision the calls to make. The hidden state moves through a small pool of buffers; the one that enters a group stays
untouched until the group's residual is taken.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from adacache_engines.base import Engine
from adacache_engines.buffers import Buffer, Call, Device
from adacache_engines.manifest import Manifest, StageEntry
from adacache_engines.tensors import NUMPY_DTYPES, TensorSpec

Granularity = Literal["stack", "block", "module"]
GRANULARITIES: tuple[Granularity, ...] = ("stack", "block", "module")
PARTS = ("embed", "blocks", "final")
OUT = "_out"  # a stage's output "hidden_out" is the next one's "hidden"


@dataclass(frozen=True)
class Engines:
    """A bundle's engines, loaded once for all generations."""

    stages: Mapping[str, Engine]
    arithmetic: Mapping[str, Engine]


@dataclass(frozen=True)
class Step:
    """A bound call; ``name`` and what it writes are for error messages."""

    name: str
    call: Call
    written: tuple[Buffer, ...]


def granularities(manifest: Manifest) -> tuple[Granularity, ...]:
    """Those that a bundle's stages allow, the coarsest first."""
    return GRANULARITIES if manifest.granularity == "module" else GRANULARITIES[:-1]


def group_stages(manifest: Manifest, granularity: Granularity) -> list[list[StageEntry]]:
    """Stages that a policy treats alike: all of them together, those of a block, or each by itself."""
    stages = [stage for stage in manifest.stages if stage.block]
    if granularity == "stack":
        return [stages]
    if granularity == "module":
        return [[stage] for stage in stages]
    return [list(group) for _, group in itertools.groupby(stages, lambda stage: stage.graph.name.split(".")[:2])]


def group_name(group: Sequence[StageEntry]) -> str:
    """Of its only stage, or its first and last."""
    first, last = group[0].graph.name, group[-1].graph.name
    return first if first == last else f"{first} to {last}"


def hidden_spec(manifest: Manifest) -> TensorSpec:
    """Of the hidden state between blocks."""
    block = next(stage for stage in manifest.stages if stage.block)
    return next(spec for spec in block.graph.inputs if spec.name == "hidden")


def residual_nbytes(manifest: Manifest, sizes: Mapping[str, int], granularity: Granularity) -> int:
    """Memory that the cached residuals take."""
    spec = hidden_spec(manifest)
    values = 1
    for size in spec.shape(sizes):
        values *= size
    return values * NUMPY_DTYPES[spec.dtype].itemsize * len(group_stages(manifest, granularity))


class Plan:
    """The tensors and bound engines of one generation.

    Args:
        manifest: of the bundle.
        engines: loaded from it.
        device: where the tensors live.
        sizes: of the dynamic axes; ``batch`` counts the guidance branches of all samples.
        granularity: of the residuals.
        reuses: whether residuals are kept at all.
        probes: site -> the buffer that receives what the site's stage shows.

    Attributes:
        tensors: what goes into the model and comes out, by name; hidden states and probes are not among them.
        groups: of stages, in the order of a decision's entries.
        text: runs once a generation, when the captions are written.
        hidden: the pool of hidden states.
        residuals: a group each; none without reuse.
        unwatched: what probes show that nobody looks at.
    """

    def __init__(
        self,
        manifest: Manifest,
        engines: Engines,
        device: Device,
        sizes: Mapping[str, int],
        granularity: Granularity,
        reuses: bool,
        probes: Mapping[str, Buffer],
    ) -> None:
        self.groups = group_stages(manifest, granularity)
        self._engines, self._device = engines, device
        self._sizes, self._spec = sizes, hidden_spec(manifest)
        self._probes = probes
        longest = max(len(group) for group in self.groups)  # a long one's input stays while its stages take turns
        self.hidden: Sequence[Buffer] = [self._empty(self._spec) for _ in range(3 if longest > 1 else 2)]
        self.residuals: Sequence[Buffer] = [self._empty(self._spec) for _ in self.groups] if reuses else []
        self.unwatched: Buffer | None = None
        self._steps: dict[tuple[bool, ...], dict[str, list[Step]]] = {}
        self._calls: dict[tuple[bool, ...], dict[str, Call]] = {}
        self.tensors: dict[str, Buffer] = {}
        for stage in manifest.stages:
            watched = {*stage.probes.values(), "hidden", "hidden" + OUT}
            for spec in (*stage.graph.inputs, *stage.graph.outputs):
                if spec.name not in watched and spec.name not in self.tensors:
                    self.tensors[spec.name] = self._empty(spec)
        order = [stage for stage in manifest.stages if not stage.block]
        text, self._embed, self._final = order
        # bound before anything runs, so that all needs are known when the first engine asks for memory
        for compute in (True, False) if reuses else (True,):
            self.steps([compute] * len(self.groups))
        self.text = self._stage(text, self.hidden[0], self.hidden[0])

    def steps(self, compute: Sequence[bool]) -> Mapping[str, Sequence[Step]]:
        """The calls of one evaluation of the model, by part (``embed``, ``blocks``, ``final``), in order.

        ``compute`` has an entry a group; a group that is not computed adds its residual of the last time.
        """
        key = tuple(compute)
        if key not in self._steps:
            self._steps[key] = self._build(key)
        return self._steps[key]

    def calls(self, compute: Sequence[bool]) -> Mapping[str, Call]:
        """Each part of :meth:`steps` as one call, which the device may record and replay."""
        key = tuple(compute)
        if key not in self._calls:
            self._calls[key] = {
                part: self._device.sequence([step.call for step in steps], f"{steps[0].name} to {steps[-1].name}")
                for part, steps in self.steps(key).items()
            }
        return self._calls[key]

    def _build(self, compute: tuple[bool, ...]) -> dict[str, list[Step]]:
        here = self.hidden[0]
        embed, blocks = [self._stage(self._embed, here, here)], []
        for index, (group, computed) in enumerate(zip(self.groups, compute, strict=True)):
            if not computed:
                blocks.append(self._reuse(here, self.residuals[index]))
                continue
            before = here
            for stage in group:
                after = next(buffer for buffer in self.hidden if buffer is not here and buffer is not before)
                blocks.append(self._stage(stage, here, after))
                here = after
            if self.residuals:
                blocks.append(self._keep(before, here, self.residuals[index]))
        return {"embed": embed, "blocks": blocks, "final": [self._stage(self._final, here, here)]}

    def _stage(self, stage: StageEntry, hidden: Buffer, hidden_out: Buffer) -> Step:
        graph, sites = stage.graph, {output: site for site, output in stage.probes.items()}
        tensors: dict[str, Buffer] = {}
        for spec in (*graph.inputs, *graph.outputs):
            if spec.name == "hidden":
                tensors[spec.name] = hidden
            elif spec.name == "hidden" + OUT:
                tensors[spec.name] = hidden_out
            elif spec.name in sites:
                tensors[spec.name] = self._probes.get(sites[spec.name]) or self._ignored(spec)
            else:
                tensors[spec.name] = self.tensors[spec.name]
        call = self._engines.stages[graph.name].bind(tensors)
        return Step(graph.name, call, tuple(tensors[spec.name] for spec in graph.outputs))

    def _reuse(self, hidden: Buffer, residual: Buffer) -> Step:
        call = self._engines.arithmetic["add"].bind({"hidden": hidden, "residual": residual, "hidden" + OUT: hidden})
        return Step("add", call, (hidden,))

    def _keep(self, before: Buffer, after: Buffer, residual: Buffer) -> Step:
        bind = self._engines.arithmetic["subtract"].bind
        return Step("subtract", bind({"before": before, "after": after, "residual": residual}), (residual,))

    def _ignored(self, spec: TensorSpec) -> Buffer:
        """One buffer for all the probes that nobody looks at."""
        if self.unwatched is None:
            self.unwatched = self._empty(spec)
        return self.unwatched

    def _empty(self, spec: TensorSpec) -> Buffer:
        return self._device.empty(spec.shape(self._sizes), NUMPY_DTYPES[spec.dtype])
