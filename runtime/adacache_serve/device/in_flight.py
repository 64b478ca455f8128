"""Generations that share a device, and the memory that they come to take together."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adacache_runtime.generation import Prepared
from adacache_runtime.memory.estimate import MemoryEstimate
from adacache_runtime.pipeline import Pipeline
from adacache_serve.device.film import Step
from adacache_serve.messages import Begin, Phase


@dataclass
class Job:
    """One that was begun, or waits for memory.

    Attributes:
        begin: as it came.
        pipeline: of its model.
        prepared: its generation.
        output: where the video goes.
        steps: None until it has its memory.
        phase: that it is in; ``since`` then, in seconds since 1970, it had ``seconds`` of the device.
        arena: bytes for activations that it keeps alive in this phase: those of another, if that one needs more.
        entries: of the calls so far.
    """

    begin: Begin
    pipeline: Pipeline
    prepared: Prepared
    output: Path
    steps: Generator[Step, None, object] | None = None
    phase: Phase = "encode"
    since: float = 0.0
    seconds: float = 0.0
    arena: int = 0
    entries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def plan(self) -> MemoryEstimate:
        """Memory that it takes."""
        return self.prepared.memory

    @property
    def own_arena(self) -> int:
        """Bytes for activations that its engines need at most."""
        return max(self.plan.arena or 0, self.plan.decoder_arena or 0)

    def keeps(self, arena: int = 0) -> int:
        """Bytes that it has between two of its turns, from now on at most; ``arena``: the largest that it may share."""
        plan, shared = self.plan, max(self.own_arena, arena)
        after = plan.after - (plan.decoder_arena or 0) + shared if plan.after else 0
        run = plan.run - (plan.arena or 0) + (shared if self.phase == "encode" else self.arena)
        return after if self.phase == "decode" else max(run, after)

    def most(self, arena: int = 0) -> int:
        """Bytes that it has at once."""
        return max(self.keeps(arena), self.plan.before if self.phase == "encode" else 0)


def largest_arena(pipeline: Pipeline, jobs: Sequence[Job]) -> int:
    """Of a model's jobs in flight: who begins beside them may share it, and keep it when they have gone."""
    return max((max(job.arena, job.own_arena) for job in jobs if job.pipeline is pipeline), default=0)


def most_nbytes(jobs: Sequence[Job]) -> int:
    """The most that jobs in flight can come to take at once: what each keeps, and what one of them has during its turn
    beside that.
    """
    kept, beyond = 0, 0
    for job in jobs:
        arena = largest_arena(job.pipeline, jobs)
        kept += job.keeps(arena)
        beyond = max(beyond, job.most(arena) - job.keeps(arena))
    return kept + beyond
