"""The contract of caching policies: per call and group, compute or reuse.

A policy is frozen parameters plus explicit state. It sees numbers, never tensors, so any policy can be replayed from
what a generation measured. ``needs`` says what the loop must keep and measure for it. ``start`` is called when a
request is checked, where it may refuse, and by the loop. Then, for each call:

1. ``observe`` gets what is measured before the decision, if the policy asks for that;
2. ``decide`` says what is computed;
3. ``observe`` gets what the call itself measured, before anything of the next call.

A policy that measures may also have a method ``bounds() -> (policy, policy)``: the policies that compute the fewest and
the most calls that it can, whatever it measures (:func:`adacache_runtime.caching.simulate.bounds`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

State = TypeVar("State")

Granularity = Literal["model", "stack", "first", "block", "module"]
GRANULARITIES: tuple[Granularity, ...] = ("model", "stack", "first", "block", "module")
Scope = Literal["batch", "prompt"]
SCOPES: tuple[Scope, ...] = ("batch", "prompt")

# sites that every bundle has, beside the probes that it was exported with
LATENTS = "latents"  # the latents that enter a call, (samples, channels, frames, height, width)
VELOCITY = "velocity"  # what a call gives, guidance included, as the sampler takes it; of the latents' shape
FIRST = "first"  # the residual of the first group, which is computed in every call if this is measured in all

# roles of probes: each stands for the probes of a bundle that have it
DEFAULT = "default"  # the residuals that the bundle's maker chose to be measured
BLOCK_INPUT = "block_input"  # the modulated input of the first block, known before any block runs


@dataclass(frozen=True)
class Measure:
    """A tensor that a policy wants to know of, and the signals that tell it.

    Attributes:
        site: where the tensor is seen: a probe of the bundle by its name, such as ``temporal.13.attn``; a role,
            ``default`` or ``block_input``, which stands for the probes that have it; or ``latents``, ``velocity`` or
            ``first``.
        calls: the calls in which it is measured: those that compute every group, or ``all``. In all calls a block's
            tensors cannot be measured, for a block shows them only where it is computed.
        since: the earlier tensor that signals compare the new one with: that of the last call that ``measured`` it, or
            of the last one that ``computed`` every group.
        signals: names of the signals.
        strides: distances in frames at which signals that compare frames are measured.
    """

    site: str = DEFAULT
    calls: Literal["computed", "all"] = "computed"
    since: Literal["measured", "computed"] = "measured"
    signals: tuple[str, ...] = ("change",)
    strides: tuple[int, ...] = (1,)

    @property
    def early(self) -> bool:
        """Whether it is measured before the call is decided."""
        return self.calls == "all" and self.site != VELOCITY


@dataclass(frozen=True)
class Needs:
    """What the loop keeps and measures for a policy.

    Attributes:
        residuals: number of residuals that each group keeps, of its last computed calls; 0 = none is ever reused.
        weighted: decisions have weights of the residuals; else the newest is added as it is.
        measures: tensors that are measured; empty = the schedule does not depend on the content, and nothing is read
            back from the device.
        granularity: granularity of the groups, unless the user chooses another.
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
    """What a call showed at one site.

    ``measurement["change"]`` is the number ``change``, a value for each unit.

    Attributes:
        site: where it was measured, such as ``temporal.13.attn``.
        values: the numbers of all signals by name, each with a value for each unit: the sum over the unit's prompts
            and guidance branches. The name of a number that was measured at a distance in frames is that of
            :func:`adacache_runtime.caching.signals.signal.at_stride`; NaN where the video has no frames so far apart.
    """

    site: str
    values: Mapping[str, tuple[float, ...]]

    def __getitem__(self, number: str) -> tuple[float, ...]:
        return self.values[number]


Observation = Mapping[str, float]
"""What a policy made of a call's measurements, as numbers by name for the trace, reports and plots; empty where it made
nothing of them. Reports know ``distance`` (relative change of the residual, a step), ``motion`` (relative change from
frame to frame, as measured), ``metric`` (the number that decides), ``rate`` (steps to the next computed call) and
``motion_score`` (what the policy makes of the motion); others are kept in the trace."""


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
        """Take in what the call ``context`` measured before or after its decision, a site each, in the order of
        execution.
        """
        ...
