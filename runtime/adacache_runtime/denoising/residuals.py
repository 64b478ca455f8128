"""Residuals of computed calls, and the steps that a call consists of: two implementations of one protocol.

Either each group of blocks keeps the residual of its state, or the whole model keeps that of its velocity. Both say for
a choice of computed groups which steps make up a call, so that the loop does not ask which of the two it has.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from adacache_engines.bundle.manifest import StageEntry
from adacache_engines.contract.device import Buffer, Call, Device
from adacache_engines.contract.engine import Engine
from adacache_engines.errors import PolicyError
from adacache_runtime.caching.policy import Rows
from adacache_runtime.denoising.guidance import Guidance
from adacache_runtime.denoising.latents import ALIGNED, FLOAT32, Latents, filled
from adacache_runtime.denoising.stages import OUT, BoundStages, Span, Step

MODEL_PARTS = ("embed", "first", "blocks", "final")  # "first": what runs before a policy decides; mostly nothing
PARTS = (*MODEL_PARTS, "velocity")

Parts = Mapping[str, Sequence[Step]]
Weights = tuple[tuple[tuple[float, ...], ...], ...]  # by branch and group, the newest residual first


@dataclass(frozen=True)
class Choice:
    """Decides which steps a call consists of.

    Attributes:
        rows: by branch and group, whether the group is computed; else its residual is reused.
        rebuilt: branches that do not run, since their prediction is rebuilt from another's.
        expert: index of the expert that makes the call.
    """

    rows: Rows
    rebuilt: tuple[bool, ...]
    expert: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.rows, self.rebuilt, self.expert)))  # looked up in every call

    def __hash__(self) -> int:
        made: int = self.__dict__["_hash"]
        return made

    @classmethod
    def alike(cls, compute: Sequence[bool], branches: int, expert: int = 0) -> "Choice":
        """Return the choice that treats all branches alike."""
        return cls((tuple(compute),) * branches, (False,) * branches, expert)

    def whole(self) -> "Choice":
        """Return the choice that computes every group of the same branches."""
        return replace(self, rows=tuple((True,) * len(row) for row in self.rows))

    def spans(self, apart: bool) -> list[Span]:
        """Return the runs of branches that go through the model together; with ``apart`` each goes by itself."""
        branches = [branch for branch, rebuilt in enumerate(self.rebuilt) if not rebuilt]
        if not apart and len(branches) == len(self.rows) and len({*self.rows}) == 1:
            return [Span(0, len(self.rows))]
        return [Span(branch, branch + 1) for branch in branches]


class Residuals(Protocol):
    """Residuals that a generation keeps, and the steps of a call that computes or reuses them."""

    @property
    def buffers(self) -> Sequence[Buffer]:
        """All residuals that are kept; none where nothing is ever reused."""
        ...

    def parts(self, choice: Choice, slot: int) -> Parts:
        """Bind the steps of a call, by part (:data:`PARTS`), from the latents of each branch to the velocity.

        Args:
            choice: what is computed.
            slot: index in the sampler's history for which the velocity is made.
        """
        ...

    def weigh(self, weights: Weights) -> None:
        """Write the weights of the residuals for the next call; empty = the newest one is added as it is."""
        ...

    def forget(self, expert: int) -> None:
        """Drop the steps that are bound to an expert's stages; the residuals stay."""
        ...


class GroupResiduals:
    """Residuals of groups of blocks: what the state is after a group, less what it was before.

    Args:
        stages: the bound stages.
        groups: by expert, the groups of stages in the order of a decision's entries.
        guidance: makes the velocity of the predictions.
        kept: number of residuals that a group keeps, the newest first; 0 = nothing is reused.
        weighted: residuals are weighted; else the newest is added as it is.
        apart: decisions with weights may differ by branch, so that each branch has residuals of its own.
        opening: the first group runs before a call is decided.

    Attributes:
        residuals: by group, (kept, batch, ...); with ``apart`` by group and branch, (kept, samples, ...).
    """

    def __init__(
        self,
        stages: BoundStages,
        groups: Sequence[Sequence[Sequence[StageEntry]]],
        guidance: Guidance,
        kept: int,
        weighted: bool,
        apart: bool,
        opening: bool,
    ) -> None:
        self._stages, self._groups, self._guidance, self._opening = stages, groups, guidance, opening
        self._apart = apart and weighted and kept > 0
        count, lanes = max(map(len, groups)), stages.branches if self._apart else 1
        self.residuals: Sequence[Sequence[Buffer]] = (
            [[stages.empty_hidden(kept, stages.branches // lanes) for _ in range(lanes)] for _ in range(count)]
            if kept
            else []
        )
        self._kept = kept
        shape = (lanes, count, -(-kept // ALIGNED) * ALIGNED)  # each group's begin where a GPU can read them
        self._weights = stages.device.empty(shape, FLOAT32) if weighted and kept else None
        self._model: dict[Choice, Mapping[str, list[Step]]] = {}

    @property
    def buffers(self) -> Sequence[Buffer]:
        """All residuals that are kept."""
        return [buffer for group in self.residuals for buffer in group]

    def count(self, expert: int) -> int:
        """Return the number of groups that an expert has."""
        return len(self._groups[expert])

    def newest(self, group: int) -> Buffer:
        """Return the newest residual of a group, (batch, ...)."""
        (buffer,) = self.residuals[group]
        return buffer.row(0)

    def parts(self, choice: Choice, slot: int) -> Parts:
        """Bind the steps of a call; see :class:`Residuals`."""
        return {**self.model(choice), "velocity": self._guidance.steps(slot, choice.rebuilt)}

    def model(self, choice: Choice) -> Mapping[str, list[Step]]:
        """Bind the steps of the model alone, from latents to predictions."""
        if choice not in self._model:
            self._model[choice] = self._bind(choice)
        return self._model[choice]

    def weigh(self, weights: Weights) -> None:
        """Write the weights of the residuals for the next call; see :class:`Residuals`."""
        if self._weights is None:
            return
        values = np.zeros(self._weights.shape, np.float32)
        values[:, :, 0] = 1
        for lane in range(len(values) if weights else 0):
            values[lane, : len(weights[lane]), : self._kept] = weights[lane]
        self._weights.write(values)

    def forget(self, expert: int) -> None:
        """Drop the steps that are bound to an expert's stages; see :class:`Residuals`."""
        for choice in [choice for choice in self._model if choice.expert == expert]:
            del self._model[choice]

    def _bind(self, choice: Choice) -> Mapping[str, list[Step]]:
        stages, entry = self._stages, self._stages.hidden[0]
        spans = choice.spans(self._apart)
        groups = list(enumerate(self._groups[choice.expert]))
        parts: dict[str, list[Step]] = {part: [] for part in MODEL_PARTS}
        everyone = [stages.everyone] if self._opening else spans
        for span in everyone:
            parts["embed"] += stages.embed(entry, span, choice.expert)
        if self._opening:
            number, group = groups.pop(0)
            parts["first"], entry = self._computed(number, group, entry, stages.everyone)
        for span in spans:
            here, row = entry, choice.rows[span.start]
            for number, group in groups:
                if row[number]:
                    made, here = self._computed(number, group, here, span)
                    parts["blocks"] += made
                else:
                    parts["blocks"].append(self._reused(number, here, span))
            parts["final"] += stages.final(here, span, choice.expert)
        return parts

    def _computed(
        self, number: int, group: Sequence[StageEntry], before: Buffer, span: Span
    ) -> tuple[list[Step], Buffer]:
        """Bind a group's stages, and what keeps its residual; return the buffer that its state ends in, too.

        The buffer that holds the state before the group stays untouched until the residual is taken.
        """
        steps, here = [], before
        for stage in group:
            after = next(buffer for buffer in self._stages.hidden if buffer is not here and buffer is not before)
            steps.append(self._stages.bind(stage, here, after, span))
            here = after
        for kept, lane in self._lanes(number, span):
            steps += self._keep(before, here, kept, lane)
        return steps, here

    def _lanes(self, number: int, span: Span) -> list[tuple[Buffer, Span]]:
        """Return the residuals of a group that a run of branches has, each with the branches that it is for."""
        if not self.residuals:
            return []
        if not self._apart:
            return [(self.residuals[number][0], span)]
        return [(self.residuals[number][branch], Span(branch, branch + 1)) for branch in range(span.start, span.stop)]

    def _keep(self, before: Buffer, after: Buffer, residuals: Buffer, span: Span) -> list[Step]:
        """Bind what moves the kept residuals on and takes the new one."""
        stages = self._stages
        rows = [residuals.row(place) for place in range(self._kept)]
        kept = rows if self._apart else [span.of(row, stages.samples) for row in rows]
        moves = [
            Step("residual", stages.device.copy(newer, older), (older,))
            for newer, older in reversed(list(itertools.pairwise(kept)))
        ]
        tensors = {"before": span.of(before, stages.samples), "after": span.of(after, stages.samples)}
        call = stages.engines.arithmetic["subtract"].bind({**tensors, "residual": kept[0]})
        return [*moves, Step("subtract", call, (kept[0],))]

    def _reused(self, number: int, state: Buffer, span: Span) -> Step:
        """Bind what adds a group's residual to the state, in place."""
        stages, arithmetic = self._stages, self._stages.engines.arithmetic
        ((residuals, span),) = self._lanes(number, span)
        hidden = span.of(state, stages.samples)
        tensors = {"hidden": hidden, "hidden" + OUT: hidden}
        if self._weights is None:
            newest = span.of(residuals.row(0), stages.samples)
            return Step("add", arithmetic["add"].bind({**tensors, "residual": newest}), (hidden,))
        weights = self._weights.row(span.start if self._apart else 0).row(number).part(0, self._kept)
        weighted = {**tensors, "residuals": residuals, "weights": weights}
        return Step("blend", arithmetic["blend"].bind(weighted), (hidden,))


class ModelResidual:
    """The residual of the whole model: what a call's velocity is beyond the latents that enter it, v - z.

    Guidance is an affine sum of branches that all begin with the same latents, so it is the same to keep this of the
    guided velocity or of each branch. All of it is linear, so the sampler's ``combine`` graph does it.

    Args:
        model: makes the velocity where the model is computed; keeps nothing itself.
        kept: number of residuals that are kept, the newest first.
        latents: the latents and the sampler's history.
        arithmetic: the bundle's arithmetic engines.
        device: device of the buffers.

    Attributes:
        residuals: (kept, samples, channels, frames, height, width) float32.
    """

    def __init__(
        self, model: GroupResiduals, kept: int, latents: Latents, arithmetic: Mapping[str, Engine], device: Device
    ) -> None:
        self._model, self._latents, self._combine = model, latents, arithmetic["combine"]
        current = latents.current
        samples = current.shape[0]
        self.residuals = device.empty((kept, *current.shape), FLOAT32)
        self._rows = [self.residuals.row(place) for place in range(kept)]
        self._moves = [
            Step("residual", device.copy(newer, older), (older,))
            for newer, older in reversed(list(itertools.pairwise(self._rows)))
        ]
        self._one, self._minus_one = (filled(device, (samples,), value) for value in (1.0, -1.0))
        self._alone = filled(device, (1, samples), 1.0)
        self._weights = filled(device, (kept, samples), 1.0)
        self._unused = device.empty((samples,), FLOAT32)

    @property
    def buffers(self) -> Sequence[Buffer]:
        """The residuals that are kept."""
        return [self.residuals]

    def parts(self, choice: Choice, slot: int) -> Parts:
        """Bind the steps of a call; see :class:`Residuals`. ``rows`` have one entry, for the whole model."""
        velocity = self._latents.velocity(slot)
        if not any(any(row) for row in choice.rows):
            reuse = self._bound(self.residuals, self._one, self._weights, velocity)
            return {**dict.fromkeys(PARTS, ()), "velocity": [Step("reuse", reuse, (velocity,))]}
        parts = self._model.parts(self.inside(choice), slot)
        keep = self._bound(self._latents.velocity_alone(slot), self._minus_one, self._alone, self._rows[0])
        kept = [*self._moves, Step("keep", keep, (self._rows[0],))]
        return {**parts, "velocity": [*parts["velocity"], *kept]}

    def inside(self, choice: Choice) -> Choice:
        """Return the choice that computes all blocks of the branches that run.

        Raises:
            PolicyError: only some of the branches that run are computed.
        """
        running = {row for row, rebuilt in zip(choice.rows, choice.rebuilt, strict=True) if not rebuilt}
        if len(running) > 1:
            raise PolicyError(
                "the policy decides differently for each branch, and with granularity model all branches have one "
                "residual: choose another granularity"
            )
        groups = self._model.count(choice.expert)
        return Choice(tuple((any(row),) * groups for row in choice.rows), choice.rebuilt, choice.expert)

    def weigh(self, weights: Weights) -> None:
        """Write the weights of the residuals for the next call; see :class:`Residuals`."""
        kept, samples = self._weights.shape
        values = np.array(weights[0][0] if weights else (1.0, *(0.0,) * (kept - 1)), np.float32)
        self._weights.write(np.repeat(values[:, None], samples, axis=1))

    def forget(self, expert: int) -> None:
        """Drop the steps that are bound to an expert's stages; see :class:`Residuals`."""
        self._model.forget(expert)

    def _bound(self, history: Buffer, scale: Buffer, weights: Buffer, out: Buffer) -> Call:
        tensors = {"history": history, "scale": scale, "weights": weights, "latents_out": out}
        return self._combine.bind({"latents": self._latents.current, "magnitude": self._unused, **tensors})
