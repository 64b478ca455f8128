"""The contract of caching policies: per call and group, compute or reuse.

A policy is frozen parameters plus explicit state. It sees numbers, never tensors, so any policy can be replayed from
a trace. ``start`` is called when a request is checked, where it may refuse, and by the loop, which then calls
``decide`` for each call and, where that measured something, ``observe``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

State = TypeVar("State")


@dataclass(frozen=True)
class Run:
    """What is known before the first call.

    Attributes:
        calls: of the denoiser.
        groups: whose residuals are cached.
        units: that decide together: 1 for the whole batch, or the number of prompts.
        names: of the groups, in the order of execution: that of the group's only stage, such as ``spatial.07`` or
            ``spatial.07.attn``, or of its first and last.
        timesteps: of all calls.
    """

    calls: int
    groups: int
    units: int
    names: tuple[str, ...] = ()
    timesteps: tuple[float, ...] = ()


@dataclass(frozen=True)
class Context:
    """Which call it is: ``call`` from 1 to ``run.calls``."""

    run: Run
    call: int
    timestep: float


@dataclass(frozen=True)
class Measurement:
    """What a computed call showed at one probe site; every tuple has one number a unit.

    Attributes:
        site: such as ``temporal.13.attn``.
        change: sum |cached - new|.
        magnitude: sum |cached|.
        frame_change: a stride each, sum |later - earlier| over the new residual's pairs of frames.
        frame_magnitude: a stride each, sum |later| + |earlier|.
    """

    site: str
    change: tuple[float, ...]
    magnitude: tuple[float, ...]
    frame_change: tuple[tuple[float, ...], ...] = ()
    frame_magnitude: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Observation:
    """What a policy made of a call's measurements, for the trace; None where it has no such number.

    Attributes:
        distance: change of the residual, a step.
        motion: of the residual from frame to frame, as measured.
        metric: the number that the rate follows from.
        rate: steps to the next computed one.
        motion_score: what the policy makes of the motion.
    """

    distance: float | None = None
    motion: float | None = None
    metric: float | None = None
    rate: int | None = None
    motion_score: float | None = None


@dataclass(frozen=True)
class Decision:
    """Whether each group is computed, in the order of execution."""

    compute: tuple[bool, ...]


class Policy(Protocol[State]):
    """A caching rule."""

    @property
    def reuses(self) -> bool:
        """False if it never reuses: the loop then keeps no residuals."""
        ...

    @property
    def sites(self) -> tuple[str, ...] | None:
        """Probes that it measures; None = the bundle's default."""
        ...

    @property
    def strides(self) -> tuple[int, ...]:
        """Distances in frames at which it measures motion."""
        ...

    def start(self, run: Run) -> State: ...

    def decide(self, state: State, context: Context) -> tuple[Decision, State]: ...

    def observe(self, state: State, context: Context, measurements: Sequence[Measurement]) -> tuple[Observation, State]:
        """Takes in what the computed call ``context`` measured, one measurement a site, in order of execution."""
        ...
