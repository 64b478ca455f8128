"""The attempts at jobs that share a device, and the memory that they take together at most."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adacache_runtime.events import Event
from adacache_runtime.generation import Prepared
from adacache_runtime.memory.estimate import MemoryEstimate
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.trace import Trace
from adacache_serve.device.messages import Begin, Phase


@dataclass
class Attempt:
    """An attempt at a job that has been started, or waits for memory.

    Attributes:
        begin: the server's message.
        pipeline: the model's pipeline.
        prepared: the generation.
        output: file of the video.
        events: the generation that runs; None while the attempt waits for memory.
        phase: the present phase.
        since: when the phase began, in seconds since 1970.
        seconds: device time that the attempt had in the phase.
        arena: size of the memory for activations that the attempt keeps alive in this phase, in bytes. It is shared
            with others, so it is another attempt's size where that one needs more.
        entries: records of the calls so far.
        trace: trace of all calls, once they are over.
    """

    begin: Begin
    pipeline: Pipeline
    prepared: Prepared
    output: Path
    events: Generator[Event, None, None] | None = None
    phase: Phase = "encode"
    since: float = 0.0
    seconds: float = 0.0
    arena: int = 0
    entries: list[dict[str, Any]] = field(default_factory=list)
    trace: Trace | None = None

    @property
    def memory(self) -> MemoryEstimate:
        """Estimate of the generation's memory."""
        return self.prepared.memory

    @property
    def own_arena(self) -> int:
        """Size of the memory for activations that its own engines need, in bytes."""
        return max(self.memory.arena or 0, self.memory.decoder_arena or 0)

    def keeps(self, arena: int = 0) -> int:
        """Return the most bytes that the attempt keeps between its turns from now on.

        Args:
            arena: size of the largest memory for activations that it may share, in bytes.
        """
        memory, shared = self.memory, max(self.own_arena, arena)
        after = memory.after - (memory.decoder_arena or 0) + shared if memory.after else 0
        run = memory.run - (memory.arena or 0) + (shared if self.phase == "encode" else self.arena)
        return after if self.phase == "decode" else max(run, after)

    def most(self, arena: int = 0) -> int:
        """Return the most bytes that the attempt has at once; ``arena`` as in :meth:`keeps`."""
        return max(self.keeps(arena), self.memory.before if self.phase == "encode" else 0)


def largest_arena(pipeline: Pipeline, attempts: Sequence[Attempt]) -> int:
    """Return the size of the largest memory for activations of a model's attempts, in bytes.

    An attempt that starts beside them may share this memory, and keep it alive when they have ended.
    """
    return max(
        (max(attempt.arena, attempt.own_arena) for attempt in attempts if attempt.pipeline is pipeline), default=0
    )


def most_nbytes(attempts: Sequence[Attempt]) -> int:
    """Return the most bytes that these attempts can have at once.

    Each has what it keeps between its turns, and one of them has what it needs beside that during its turn.
    """
    kept, beyond = 0, 0
    for attempt in attempts:
        arena = largest_arena(attempt.pipeline, attempts)
        kept += attempt.keeps(arena)
        beyond = max(beyond, attempt.most(arena) - attempt.keeps(arena))
    return kept + beyond
