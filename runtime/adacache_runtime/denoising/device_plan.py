"""From a decision to a sequence of bound calls.

A plan belongs to one generation. It owns the tensors between the stages, binds engines to them, and gives for each
decision the calls to make. The hidden state moves through a small pool of buffers; the one that enters a group stays
untouched until the group's residual is taken.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adacache_engines.bundle.manifest import Manifest, StageEntry
from adacache_engines.bundle.tensors import NUMPY_DTYPES, TensorSpec
from adacache_engines.contract.device import Buffer, Call, Device, in_turn
from adacache_engines.contract.engine import Engine
from adacache_runtime.caching.groups import group_stages, hidden_spec
from adacache_runtime.caching.policy import Granularity, Needs

PARTS = ("embed", "first", "blocks", "final")  # "first": what runs before a policy decides; mostly nothing
OUT = "_out"  # a stage's output "hidden_out" is the next one's "hidden"


@dataclass(frozen=True)
class Engines:
    """A bundle's engines, loaded once for all generations; each mapping goes by the graph's name."""

    stages: Mapping[str, Engine]
    arithmetic: Mapping[str, Engine]
    signals: Mapping[str, Engine]


@dataclass(frozen=True)
class Step:
    """A bound call; ``name`` and what it writes are for error messages."""

    name: str
    call: Call
    written: tuple[Buffer, ...]


class Plan:
    """The tensors and bound engines of one generation.

    Args:
        manifest: of the bundle.
        engines: loaded from it.
        device: where the tensors live.
        sizes: of the dynamic axes; ``batch`` counts the guidance branches of all samples.
        granularity: of the residuals; with ``model`` they are not kept here, and every block is always computed.
        needs: how many residuals a group keeps, and whether they are weighted.
        probes: site -> the buffer that receives what the site's stage shows.
        opening: the first group runs before a call is decided.

    Attributes:
        tensors: what goes into the model and comes out, by name; hidden states and probes are not among them.
        groups: of stages, in the order of a decision's entries.
        text: runs once a generation, when the captions are written.
        hidden: the pool of hidden states.
        residuals: a group each, (kept, ...) the newest first; none without reuse.
        weights: of the residuals, (groups, kept) float32; None where the newest is added as it is.
        unwatched: what probes show that nobody looks at.
        embed: the call of the stage of that name.
        first: the call of the first group, where it runs before a call is decided.
    """

    def __init__(
        self,
        manifest: Manifest,
        engines: Engines,
        device: Device,
        sizes: Mapping[str, int],
        granularity: Granularity,
        needs: Needs,
        probes: Mapping[str, Buffer],
        opening: bool = False,
    ) -> None:
        self.groups = group_stages(manifest, "stack" if granularity == "model" else granularity)
        self._engines, self._device = engines, device
        self._sizes, self._spec = sizes, hidden_spec(manifest)
        self._probes, self._opening = probes, opening
        longest = max(len(group) for group in self.groups)  # a long one's input stays while its stages take turns
        self.hidden: Sequence[Buffer] = [self._empty(self._spec) for _ in range(3 if longest > 1 else 2)]
        kept = 0 if granularity == "model" else needs.residuals
        self.residuals: Sequence[Buffer] = [self._empty(self._spec, kept) for _ in self.groups] if kept else []
        weighted = kept > 0 and needs.weighted
        self.weights = device.empty((len(self.groups), kept), np.dtype(np.float32)) if weighted else None
        self.unwatched: Buffer | None = None
        self._steps: dict[tuple[bool, ...], dict[str, list[Step]]] = {}
        self._calls: dict[tuple[bool, ...], dict[str, Call]] = {}
        self.tensors: dict[str, Buffer] = {}
        for stage in manifest.stages:
            watched = {*(probe.output for probe in stage.probes.values()), "hidden", "hidden" + OUT}
            for spec in (*stage.graph.inputs, *stage.graph.outputs):
                if spec.name not in watched and spec.name not in self.tensors:
                    self.tensors[spec.name] = self._empty(spec)
        (text,), (self._embed,), (self._final,) = (manifest.stages_of(role) for role in ("text", "embed", "final"))
        # bound before anything runs, so that all needs are known when the first engine asks for memory
        for compute in (True, False) if self.residuals else (True,):
            steps = self.steps([compute or (opening and not index) for index in range(len(self.groups))])
        self.text = self._stage(text, self.hidden[0], self.hidden[0])
        self.embed, self.first = (self._sequence(steps[part]) for part in ("embed", "first"))

    def steps(self, compute: Sequence[bool]) -> Mapping[str, Sequence[Step]]:
        """The calls of one evaluation of the model, by part (:data:`PARTS`), in order.

        ``compute`` has an entry a group; a group that is not computed adds its residual of the last time.
        """
        key = tuple(compute)
        if key not in self._steps:
            self._steps[key] = self._build(key)
        return self._steps[key]

    def calls(self, compute: Sequence[bool]) -> Mapping[str, Call]:
        """What follows the decision, ``blocks`` and ``final``, as one call each, which the device may record and
        replay.
        """
        key = tuple(compute)
        if key not in self._calls:
            steps = self.steps(key)
            self._calls[key] = {part: self._sequence(steps[part]) for part in ("blocks", "final")}
        return self._calls[key]

    def final_of(self, hidden: Buffer) -> Call:
        """The final layer on another hidden state, of the same shape; its prediction takes the place of the call's."""
        return self._stage(self._final, hidden, hidden).call

    def _sequence(self, steps: Sequence[Step]) -> Call:
        if not steps:
            return in_turn([])
        return self._device.sequence([step.call for step in steps], f"{steps[0].name} to {steps[-1].name}")

    def _build(self, compute: tuple[bool, ...]) -> dict[str, list[Step]]:
        here = self.hidden[0]
        steps: dict[str, list[Step]] = {"embed": [self._stage(self._embed, here, here)], "first": [], "blocks": []}
        for index, (group, computed) in enumerate(zip(self.groups, compute, strict=True)):
            made = steps["first" if self._opening and not index else "blocks"]
            if not computed:
                made.append(self._reuse(here, index))
                continue
            before = here
            for stage in group:
                after = next(buffer for buffer in self.hidden if buffer is not here and buffer is not before)
                made.append(self._stage(stage, here, after))
                here = after
            if self.residuals:
                made += self._keep(before, here, self.residuals[index])
        return {**steps, "final": [self._stage(self._final, here, here)]}

    def _stage(self, stage: StageEntry, hidden: Buffer, hidden_out: Buffer) -> Step:
        graph, sites = stage.graph, {probe.output: site for site, probe in stage.probes.items()}
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

    def _reuse(self, hidden: Buffer, index: int) -> Step:
        """Adds a group's residual to ``hidden``, in place."""
        residuals, tensors = self.residuals[index], {"hidden": hidden, "hidden" + OUT: hidden}
        if self.weights is None:
            call = self._engines.arithmetic["add"].bind({**tensors, "residual": residuals.row(0)})
            return Step("add", call, (hidden,))
        weighted = {**tensors, "residuals": residuals, "weights": self.weights.row(index)}
        return Step("blend", self._engines.arithmetic["blend"].bind(weighted), (hidden,))

    def _keep(self, before: Buffer, after: Buffer, residuals: Buffer) -> list[Step]:
        """Moves the kept residuals on, and takes the new one."""
        kept = [residuals.row(place) for place in range(residuals.shape[0])]
        moves = [
            Step("residual", self._device.copy(newer, older), (older,))
            for newer, older in reversed(list(itertools.pairwise(kept)))
        ]
        bind = self._engines.arithmetic["subtract"].bind
        return [*moves, Step("subtract", bind({"before": before, "after": after, "residual": kept[0]}), (kept[0],))]

    def _ignored(self, spec: TensorSpec) -> Buffer:
        """One buffer for all the probes that nobody looks at."""
        if self.unwatched is None:
            self.unwatched = self._empty(spec)
        return self.unwatched

    def _empty(self, spec: TensorSpec, count: int | None = None) -> Buffer:
        """A tensor, or ``count`` of them in one."""
        shape = spec.shape(self._sizes)
        return self._device.empty(shape if count is None else (count, *shape), NUMPY_DTYPES[spec.dtype])
