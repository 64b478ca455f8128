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
from typing import Any, Literal, Protocol, TypeVar

State = TypeVar("State")
Rows = tuple[tuple[bool, ...], ...]  # by branch and group, whether the group is computed

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
        by_branch: decisions may differ by guidance branch.
        rebuilds: decisions may rebuild a branch's prediction from the other's.
    """

    residuals: int = 1
    weighted: bool = False
    measures: tuple[Measure, ...] = ()
    granularity: Granularity = "stack"
    by_branch: bool = False
    rebuilds: bool = False


@dataclass(frozen=True)
class Run:
    """What a policy is told before the first call.

    The calls are those of one expert. A model with several has one run after another, each with a state of its own.

    Attributes:
        calls: number of calls of the denoiser.
        groups: number of groups whose residuals are cached.
        units: number of units that decide together: 1 for the whole batch, or the number of prompts.
        names: names of the groups, in the order of execution: that of the group's only stage, such as ``spatial.07`` or
            ``spatial.07.attn``, or of its first and last.
        timesteps: timesteps of all calls, from 1000 (noise) to 0 (data).
        branches: guidance branches that a call evaluates, in the order of a decision's rows.
    """

    calls: int
    groups: int
    units: int
    names: tuple[str, ...] = ()
    timesteps: tuple[float, ...] = ()
    branches: tuple[str, ...] = ("conditional",)


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
    """What is done with each group in a call, for all guidance branches alike or for each.

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
    def needs(self) -> Needs: ...

    def start(self, run: Run) -> State: ...

    def decide(self, state: State, context: Context) -> tuple[Decision, State]: ...

    def observe(self, state: State, context: Context, measurements: Sequence[Measurement]) -> tuple[Observation, State]:
        """Takes in what the call ``context`` measured before or after its decision, in the order of execution."""
        ...


def merged(first: Observation, second: Observation) -> Observation:
    """Both in one; the second's numbers count where both have one."""
    return replace(first, **{name: value for name, value in vars(second).items() if value is not None})
