"""Which calls a policy computes, found without a model: on numbers that were measured before, or on none.

A policy sees numbers only, so it is driven here as the loop drives it, by a source that answers what it measures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from adacache_runtime.caching.policies.adacache import AdaCache
from adacache_runtime.caching.policies.easycache import EasyCache
from adacache_runtime.caching.policies.fbcache import FBCache
from adacache_runtime.caching.policies.teacache import TeaCache
from adacache_runtime.caching.policies.wrappers import Wrapper
from adacache_runtime.caching.policy import (
    Context,
    Measure,
    Measurement,
    Needs,
    Observation,
    Policy,
    Rows,
    Run,
    compact,
    merged,
    rows_of,
)


class Source(Protocol):
    """What would have been measured."""

    def measures(self, needs: Needs) -> Sequence[Measure]:
        """What a policy with these needs is shown, in the order of execution, with sites of the source for the default
        one.
        """
        ...

    def measurement(self, measure: Measure, earlier: int, call: int) -> Measurement:
        """Of the tensor in a call, compared with that in an earlier one; both from 1."""
        ...


@dataclass(frozen=True)
class Simulated:
    """What a policy would do.

    Attributes:
        decisions: for each call, whether each group is computed; or a row of these for each branch.
        observations: a call each.
    """

    decisions: tuple[tuple[bool, ...] | Rows, ...]
    observations: tuple[Observation, ...]

    def computed(self) -> list[int]:
        """The calls, from 1, in which a block runs in full."""
        return [call for call, compute in enumerate(self.decisions, 1) if any(map(any, rows_of(compute)))]


def simulate(policy: Policy[Any], run: Run, source: Source) -> Simulated:
    """Drives a policy through all calls of a run.

    Raises:
        PolicyError: the policy cannot decide for such groups or calls.
    """
    state = policy.start(run)
    measures = source.measures(policy.needs)
    last: dict[Measure, int] = {}  # the call whose tensor is remembered
    decisions: list[tuple[bool, ...] | Rows] = []
    observations: list[Observation] = []
    for call in range(1, run.calls + 1):
        context = Context(run, call, run.timesteps[call - 1])
        observed = Observation()

        def observe(active: Sequence[Measure], state: Any, observed: Observation) -> tuple[Any, Observation]:
            if not active or any(measure not in last for measure in active):
                return state, observed
            shown = [source.measurement(measure, last[measure], call) for measure in active]  # noqa: B023
            seen, state = policy.observe(state, context, shown)  # noqa: B023
            return state, merged(observed, seen)

        state, observed = observe([measure for measure in measures if measure.early], state, observed)
        decision, state = policy.decide(state, context)
        rows = decision.rows(len(run.branches))
        whole = all(all(row) for row in rows)
        active = [measure for measure in measures if measure.calls == "all" or whole]
        state, observed = observe([measure for measure in active if not measure.early], state, observed)
        last.update({measure: call for measure in active if measure.since == "measured" or whole})
        decisions.append(compact(rows))
        observations.append(observed)
    return Simulated(tuple(decisions), tuple(observations))


class Unchanged:
    """Nothing changes much: every tensor by as much as its magnitude, which :func:`bounds` make count for nothing."""

    def measures(self, needs: Needs) -> Sequence[Measure]:
        return needs.measures

    def measurement(self, measure: Measure, earlier: int, call: int) -> Measurement:
        frames = ((1.0,),) * len(measure.strides)
        return Measurement(measure.site, (1.0,), (1.0,), frames, frames)


def replay(
    policy: Policy[Any], timesteps: Sequence[float], names: Sequence[str] = ("all",)
) -> list[tuple[bool, ...] | Rows]:
    """Each call's decision for groups of these names, for a policy that measures nothing, or a bound.

    Raises:
        PolicyError: the policy cannot decide for such groups.
    """
    run = Run(len(timesteps), len(names), 1, tuple(names), tuple(timesteps))
    return list(simulate(policy, run, Unchanged()).decisions)


def bounds(policy: Policy[Any]) -> tuple[Policy[Any], Policy[Any]] | None:
    """Policies that compute the fewest and the most calls that this one can, whatever they measure.

    Both are the policy itself where it measures nothing; None for a policy that measures and is not known here.
    """
    if not policy.needs.measures:
        return policy, policy
    if isinstance(policy, Wrapper):
        inner = bounds(policy.inside)
        if inner is None:
            return None
        fewest, most = (policy.model_copy(update={"policy": bound}) for bound in inner)
        return fewest, most
    if isinstance(policy, AdaCache):
        rates = [rate for _, rate in policy.codebook]
        slow, fast = (AdaCache(codebook=((1.0, rate),)) for rate in (max(rates), min(rates)))
        return slow, fast
    if isinstance(policy, TeaCache | FBCache | EasyCache):
        never, always = (policy.model_copy(update={"threshold": value}) for value in (math.inf, -math.inf))
        return never, always
    return None
