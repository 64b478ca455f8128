"""The contract of caching policies: per call and group, compute or reuse.

A policy is frozen parameters plus explicit state. It sees numbers, never tensors, so any policy can be replayed from
what a generation measured. ``needs`` says what the loop must keep and measure for it. ``start`` is called when a
request is checked, where it may refuse, and by the loop. Then, for each call:

1. ``observe`` gets what is measured before the decision, if the policy asks for that;
2. ``decide`` says what is computed;
3. ``observe`` gets what the call itself measured, before anything of the next call.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

State = TypeVar("State")

Granularity = Literal["model", "stack", "first", "block", "module"]
GRANULARITIES: tuple[Granularity, ...] = ("model", "stack", "first", "block", "module")
Scope = Literal["batch", "prompt"]
SCOPES: tuple[Scope, ...] = ("batch", "prompt")

# sites that every bundle has, beside the probes that it was exported with
DEFAULT = "default"  # the bundle's own choice of probes
LATENTS = "latents"  # that enter a call, (samples, channels, frames, height, width)
VELOCITY = "velocity"  # that a call gives, guidance included, as the sampler takes it; of the latents' shape
FIRST = "first"  # the residual of the first group, which is computed in every call if this is measured in all


@dataclass(frozen=True)
class Measure:
    """What a policy wants to know of a tensor: by how much it changed, and how it moves from frame to frame.

    Attributes:
        site: a probe of the bundle, such as ``temporal.13.attn``, or one of the names above.
        calls: in which it is measured: those that compute every group, or ``all``. In all calls there are only the
            names above but ``default``, and probes that come before the blocks, such as ``spatial.0.modulated``.
        since: the tensor is compared with that of the last call that ``measured`` it, or of the last one that
            ``computed`` every group.
        strides: distances in frames at which motion is measured.
    """

    site: str = DEFAULT
    calls: Literal["computed", "all"] = "computed"
    since: Literal["measured", "computed"] = "measured"
    strides: tuple[int, ...] = ()

    @property
    def early(self) -> bool:
        """Whether it is measured before the call is decided."""
        return self.calls == "all" and self.site != VELOCITY


@dataclass(frozen=True)
class Needs:
    """What the loop keeps and measures for a policy.

    Attributes:
        residuals: that each group keeps, of its last computed calls; 0 = it never reuses one.
        weighted: decisions have weights of the residuals; else the newest is added as it is.
        measures: empty = the schedule does not depend on the content: nothing is read back from the device.
        granularity: of the groups, unless the user chooses another.
    """

    residuals: int = 1
    weighted: bool = False
    measures: tuple[Measure, ...] = ()
    granularity: Granularity = "stack"


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
    """Which call it is: ``call`` from 1 to ``run.calls``.

    ``forced``: it is computed whatever the policy says, which should take it for a computed one.
    """

    run: Run
    call: int
    timestep: float
    forced: bool = False


@dataclass(frozen=True)
class Measurement:
    """What a call showed at one site; every tuple has one number a unit.

    Attributes:
        site: such as ``temporal.13.attn``.
        change: sum |earlier - new|, the earlier tensor being that of ``Measure.since``.
        magnitude: sum |earlier|; at the site ``velocity`` sum |new|.
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
    """What is done with each group, in the order of execution.

    Attributes:
        compute: whether it is computed.
        weights: of the residuals that it keeps, the newest first, where it is not; an entry a group, also for those
            that are computed. Empty = the newest as it is.
    """

    compute: tuple[bool, ...]
    weights: tuple[tuple[float, ...], ...] = ()


class Policy(Protocol[State]):
    """A caching rule."""

    @property
    def needs(self) -> Needs: ...

    def start(self, run: Run) -> State: ...

    def decide(self, state: State, context: Context) -> tuple[Decision, State]: ...

    def observe(self, state: State, context: Context, measurements: Sequence[Measurement]) -> tuple[Observation, State]:
        """Takes in what the call ``context`` measured before or after its decision, in the order of execution."""
        ...


def merged(first: Observation, second: Observation) -> Observation:
    """Both in one; the second's numbers count where both have one."""
    return replace(first, **{name: value for name, value in vars(second).items() if value is not None})
