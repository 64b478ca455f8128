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
from typing import Any, Literal, Protocol, TypeVar

State = TypeVar("State")
Rows = tuple[tuple[bool, ...], ...]  # by branch and group, whether the group is computed

Granularity = Literal["model", "stack", "first", "block", "module"]
GRANULARITIES: tuple[Granularity, ...] = ("model", "stack", "first", "block", "module")
Scope = Literal["batch", "prompt"]
SCOPES: tuple[Scope, ...] = ("batch", "prompt")

# sites that every bundle has, beside the probes that it was exported with
LATENTS = "latents"  # the latents that enter a call, (samples, channels, frames, height, width)
VELOCITY = "velocity"  # what a call gives, guidance included, as the sampler takes it; of the latents' shape
CONDITIONAL_VELOCITY = "conditional_velocity"  # the velocity of the conditional branch alone, of computed calls
TIME: Literal["time"] = "time"  # the embedding of the timestep, (branches * samples, width), where a bundle shows it
# the modulation of all blocks that is made of that, (branches * samples, 6 width), where a bundle shows it
TIME_MODULATION: Literal["time_modulation"] = "time_modulation"
FIRST = "first"  # the residual of the first group, which is computed in every call if this is measured in all

# roles of probes: each stands for the probes of a bundle that have it
DEFAULT = "default"  # the residuals that the bundle's maker chose to be measured
# the modulated input of the first block, known before any block runs
BLOCK_INPUT: Literal["block_input"] = "block_input"


@dataclass(frozen=True)
class Measure:
    """A tensor that a policy wants to know of, and the signals that tell it.

    Attributes:
        site: where the tensor is seen: a probe of the bundle by its name, such as ``temporal.13.attn``; a role,
            ``default`` or ``block_input``, which stands for the probes that have it; or ``time``, ``time_modulation``,
            ``latents``, ``velocity``, ``conditional_velocity`` or ``first``.
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
    """Residuals and measurements that the loop keeps and makes for a policy.

    Attributes:
        residuals: number of residuals that each group keeps, of its last computed calls; 0 = none is ever reused.
        weighted: decisions have weights of the residuals; else the newest is added as it is.
        measures: tensors that are measured; empty = the schedule does not depend on the content, and nothing is read
            back from the device.
        granularity: granularity of the groups, unless the user chooses another.
        by_branch: decisions may differ by guidance branch; each branch is measured by itself then.
        rebuilds: decisions may rebuild a branch's prediction from the other's.
    """

    residuals: int = 1
    weighted: bool = False
    measures: tuple[Measure, ...] = ()
    granularity: Granularity = "stack"
    by_branch: bool = False
    rebuilds: bool = False


@dataclass(frozen=True)
class Place:
    """Where a group stands in the model.

    Attributes:
        name: label for people: that of the group's only stage, or of its first and last.
        kind: kind of the block that the group is, or is a part of, such as ``spatial``; None where the group is more
            than one block.
        index: number of that block among those of its kind, from 0; None where the group is more than one block.
        part: part of that block, such as ``attn``; None where the group is a whole block or more.
    """

    name: str
    kind: str | None = None
    index: int | None = None
    part: str | None = None


@dataclass(frozen=True)
class Run:
    """The calls that a policy decides about, as it is told before the first one.

    The calls are those of one expert. A model with several has one run after another, each with a state of its own.

    Attributes:
        calls: number of calls of the denoiser.
        groups: number of groups whose residuals are cached.
        units: number of units that decide together: 1 for the whole batch, or the number of prompts.
        places: where each group stands in the model, in the order of execution.
        timesteps: timesteps of all calls, from 1000 (noise) to 0 (data).
        branches: guidance branches that a call evaluates, in the order of a decision's rows.
        before, after: number of calls of the generation that other experts make before and after these.
    """

    calls: int
    groups: int
    units: int
    places: tuple[Place, ...] = ()
    timesteps: tuple[float, ...] = ()
    branches: tuple[str, ...] = ("conditional",)
    before: int = 0
    after: int = 0


@dataclass(frozen=True)
class Context:
    """Which call a policy decides about.

    Attributes:
        run: the calls that this one belongs to.
        call: number of the call, from 1 to ``run.calls``.
        timestep: timestep of the call.
        forced: the call is computed whatever the policy says, which should take it for a computed one.
    """

    run: Run
    call: int
    timestep: float
    forced: bool = False


@dataclass(frozen=True)
class Measurement:
    """Numbers that a call showed at one site.

    ``measurement["change"]`` is the number ``change``, a value for each unit.

    Attributes:
        site: where it was measured, such as ``temporal.13.attn``.
        values: the numbers of all signals by name, each with a value for each unit: the sum over the unit's prompts
            and guidance branches. The name of a number that was measured at a distance in frames is that of
            :func:`adacache_runtime.caching.signals.signal.at_stride`; NaN where the video has no frames so far apart.
        branch: index of the guidance branch, where decisions are by branch and the tensor has branches: there is a
            measurement for each branch that was computed, compared with its own earlier tensor. None = of all branches.
    """

    site: str
    values: Mapping[str, tuple[float, ...]]
    branch: int | None = None

    def __getitem__(self, number: str) -> tuple[float, ...]:
        return self.values[number]


Observation = Mapping[str, float]
"""Numbers that a policy made of a call's measurements, by name, for the trace, reports and plots; empty where it made
none. Reports know ``distance`` (relative change of the residual, a step), ``motion`` (relative change from
frame to frame, as measured), ``metric`` (the number that decides), ``rate`` (steps to the next computed call) and
``motion_score`` (what the policy makes of the motion); others are kept in the trace."""


@dataclass(frozen=True)
class Decision:
    """The groups that a call computes and reuses, for all guidance branches alike or for each.

    Attributes:
        compute: for each group, in the order of execution, whether it is computed; else its residual is reused. Or a
            row of these for each branch.
        weights: for each group, computed or not, the weights of the residuals that it keeps, the newest first. Or a row
            of these for each branch, where ``compute`` has rows. Empty = the newest residual is added as it is.
        rebuild: for each branch, None where it runs; or the weight w with which its prediction is rebuilt from the
            other branch's, p + w (difference of both in the last call in which both ran), so that it does not run and
            its entries of ``compute`` do not count. Empty = all branches run.
    """

    compute: tuple[bool, ...] | Rows
    weights: tuple[tuple[float, ...], ...] | tuple[tuple[tuple[float, ...], ...], ...] = ()
    rebuild: tuple[float | None, ...] = ()

    @property
    def by_branch(self) -> bool:
        """Whether there is a row for each branch."""
        return by_branch(self.compute)

    def rebuilt(self, branches: int) -> tuple[bool, ...]:
        """Return for each branch whether its prediction is rebuilt instead of computed."""
        return tuple(weight is not None for weight in self.rebuild) or (False,) * branches

    def rows(self, branches: int) -> Rows:
        """Return a row for each branch; a branch that is rebuilt computes nothing."""
        rows = rows_of(self.compute) if self.by_branch else rows_of(self.compute) * branches
        rebuilt = (*self.rebuilt(branches), *(False,) * len(rows))
        return tuple((False,) * len(row) if skipped else row for row, skipped in zip(rows, rebuilt, strict=False))

    def with_rows(self, rows: Rows) -> "Decision":
        """Return the same decision with other groups computed; a branch that computes one is not rebuilt."""
        pairs = zip(rows, self.rebuild or (None,) * len(rows), strict=True)
        rebuild = tuple(None if any(row) else weight for row, weight in pairs)
        running = next(row for row, weight in zip(rows, rebuild, strict=True) if weight is None)
        compute = compact(tuple(row if weight is None else running for row, weight in zip(rows, rebuild, strict=True)))
        weights: Any = self.weights_by_branch(len(rows))
        if weights and not by_branch(compute):
            weights = weights[0]
        return Decision(compute, weights, rebuild if any(weight is not None for weight in rebuild) else ())

    def weights_by_branch(self, branches: int) -> tuple[tuple[tuple[float, ...], ...], ...]:
        """Return the weights with a row for each branch; empty where there are none."""
        if not self.weights:
            return ()
        rows: Any = self.weights if self.by_branch else (self.weights,) * branches
        return tuple(rows)


def by_branch(compute: tuple[bool, ...] | Rows) -> bool:
    """Return whether groups are listed in rows, one for each branch."""
    return bool(compute) and isinstance(compute[0], tuple)


def rows_of(compute: tuple[bool, ...] | Rows) -> Rows:
    """Return groups in rows: those that there are, or a single one for all branches."""
    rows: Any = compute if by_branch(compute) else (compute,)
    return tuple(rows)


def compact(rows: Rows) -> tuple[bool, ...] | Rows:
    """Return rows that are all alike as a single one without the branches, and others as they are."""
    return rows[0] if len({*rows}) == 1 else rows


class Policy(Protocol[State]):
    """A caching rule."""

    @property
    def needs(self) -> Needs:
        """Residuals and measurements that the policy needs."""
        ...

    def start(self, run: Run) -> State:
        """Return the state before the first call.

        Raises:
            PolicyError: the policy cannot decide for such groups or calls.
        """
        ...

    def decide(self, state: State, context: Context) -> tuple[Decision, State]:
        """Decide what a call computes; return the next state, too."""
        ...

    def observe(self, state: State, context: Context, measurements: Sequence[Measurement]) -> tuple[Observation, State]:
        """Take in what a call measured before or after its decision, sites in the order of execution."""
        ...
