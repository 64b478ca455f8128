"""Policies around a policy: calls that are always computed, a limit of reuses in a row, extrapolation.

They combine freely, also with each other: the outermost has the last word.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from adacache_engines.errors import PolicyError
from adacache_runtime.caching import answers
from adacache_runtime.caching.policy import Context, Decision, Measurement, Needs, Observation, Policy, Run, by_branch
from adacache_runtime.caching.simulate import bounds


@dataclass(frozen=True)
class Wrapped:
    """A wrapper between two calls.

    Attributes:
        inner: state of the policy inside.
        own: the wrapper's own state, by branch and group.
    """

    inner: Any
    own: tuple[Any, ...] = ()


class Wrapper(BaseModel):
    """A policy around another one.

    Attributes:
        policy: the policy inside.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    policy: Any

    @field_validator("policy")
    @classmethod
    def _is_one(cls, policy: Any) -> Any:
        if not hasattr(policy, "decide"):
            raise ValueError(f"expected a policy, not {policy!r}")
        return policy

    @property
    def inside(self) -> Policy[Any]:
        policy: Policy[Any] = self.policy
        return policy

    @property
    def needs(self) -> Needs:
        return answers.needs_of(self.inside)

    def bounds(self) -> tuple[Self, Self] | None:
        """Return this wrapper around the bounds of the policy inside; None where that states none."""
        inner = bounds(self.inside)
        if inner is None:
            return None
        fewest, most = (self.model_copy(update={"policy": bound}) for bound in inner)
        return fewest, most

    def start(self, run: Run) -> Wrapped:
        return Wrapped(answers.start(self.inside, run))

    def decide(self, state: Wrapped, context: Context) -> tuple[Decision, Wrapped]:
        decision, inner = answers.decide(self.inside, state.inner, context)
        return decision, replace(state, inner=inner)

    def observe(
        self, state: Wrapped, context: Context, measurements: Sequence[Measurement]
    ) -> tuple[Observation, Wrapped]:
        observation, inner = answers.observe(self.inside, state.inner, context, measurements)
        return observation, replace(state, inner=inner)


class WarmUp(Wrapper):
    """Always compute the first calls.

    Attributes:
        calls: number of calls that are always computed.
    """

    name: Literal["warm-up"] = "warm-up"
    calls: int = Field(ge=1)

    def decide(self, state: Wrapped, context: Context) -> tuple[Decision, Wrapped]:
        return _computed(self.inside, state, context, context.call <= self.calls)


class LastCalls(Wrapper):
    """Always compute the last calls.

    Attributes:
        calls: number of calls that are always computed.
    """

    name: Literal["last-calls"] = "last-calls"
    calls: int = Field(ge=1)

    def decide(self, state: Wrapped, context: Context) -> tuple[Decision, Wrapped]:
        return _computed(self.inside, state, context, context.call > context.run.calls - self.calls)


class MaxReuses(Wrapper):
    """Compute a group that was reused so many times in a row. The own state is the number of reuses in a row.

    Attributes:
        reuses: largest number of reuses in a row.
    """

    name: Literal["max-reuses"] = "max-reuses"
    reuses: int = Field(ge=0)

    def start(self, run: Run) -> Wrapped:
        return Wrapped(answers.start(self.inside, run), ((0,) * run.groups,) * len(run.branches))

    def decide(self, state: Wrapped, context: Context) -> tuple[Decision, Wrapped]:
        counts = [count for row in state.own for count in row]
        full = [count >= self.reuses for count in counts]
        # a policy is told where that leaves it no choice: groups that are not reused now, it always computes; and one
        # that weighs residuals must know how old they are, so there a group at its limit takes the others along
        alike = all(at_limit or not count for at_limit, count in zip(full, counts, strict=True))
        forced = any(full) and (alike or self.needs.weighted)
        forced_context = replace(context, forced=context.forced or forced)
        decision, inner = answers.decide(self.inside, state.inner, forced_context)
        decided = decision.rows(len(state.own))
        rows = tuple(
            tuple(wanted or count >= self.reuses or context.forced for wanted, count in zip(row, own, strict=True))
            for row, own in zip(decided, state.own, strict=True)
        )
        own = tuple(
            tuple(0 if now else count + 1 for now, count in zip(row, before, strict=True))
            for row, before in zip(rows, state.own, strict=True)
        )
        return decision if rows == decided else decision.with_rows(rows), Wrapped(inner, own)


class Extrapolate(Wrapper):
    """Reuse the residual as a line through its last two computed values goes on: r + slope x gap, in calls.

    The own state is the last and the last but one computed call; 0 = none.
    """

    name: Literal["extrapolate"] = "extrapolate"

    @property
    def needs(self) -> Needs:
        inner = answers.needs_of(self.inside)
        if inner.residuals == 0:
            return inner
        return replace(inner, residuals=2, weighted=True, by_branch=inner.by_branch or inner.rebuilds)

    def start(self, run: Run) -> Wrapped:
        if answers.needs_of(self.inside).weighted:
            raise PolicyError(f"policy {self.inside!r} has weights of its own; leave out extrapolate")
        return Wrapped(answers.start(self.inside, run), (((0, 0),) * run.groups,) * len(run.branches))

    def decide(self, state: Wrapped, context: Context) -> tuple[Decision, Wrapped]:
        decision, state = super().decide(state, context)
        if not self.needs.weighted:
            return decision, state
        branches = len(state.own)
        rows = ((True,) * context.run.groups,) * branches if context.forced else decision.rows(branches)
        own = tuple(
            tuple(
                (context.call, last) if now else (last, before) for now, (last, before) in zip(row, seen, strict=True)
            )
            for row, seen in zip(rows, state.own, strict=True)
        )
        weights = tuple(tuple(_line(context.call, *calls) for calls in row) for row in own)
        state = replace(state, own=own)
        if len({*weights}) == 1 and not by_branch(decision.compute):
            compute = rows[0] if context.forced else decision.compute
            return Decision(compute, weights[0], decision.rebuild), state
        return Decision(rows, weights, decision.rebuild), state


def _line(call: int, last: int, before: int) -> tuple[float, float]:
    """Return the weights of the residuals of two calls that give the value at a later one."""
    if not before:
        return 1.0, 0.0
    slope = (call - last) / (last - before)
    return 1.0 + slope, -slope


def _computed(policy: Policy[Any], state: Wrapped, context: Context, forced: bool) -> tuple[Decision, Wrapped]:
    """Return the decision of a policy, or to compute every group where that is forced, and the next state."""
    decision, inner = answers.decide(policy, state.inner, replace(context, forced=context.forced or forced))
    if forced:
        decision = decision.with_rows(((True,) * context.run.groups,) * len(context.run.branches))
    return decision, replace(state, inner=inner)
