"""Which calls a policy computes, found without a model: on numbers that were measured before, or on none.

A policy sees numbers only, so it is driven here as the loop drives it, by a source that answers what it measures.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from adacache_runtime.caching import answers
from adacache_runtime.caching.measures import space_of
from adacache_runtime.caching.policy import (
    Context,
    Measure,
    Measurement,
    Needs,
    Observation,
    Place,
    Policy,
    Rows,
    Run,
    compact,
    rows_of,
)

Part = tuple[Measure, int | None]  # what is measured, and of which guidance branch; None = of all


class Source(Protocol):
    """Numbers that would have been measured."""

    def measures(self, needs: Needs) -> Sequence[Measure]:
        """Return what a policy with these needs is shown, in the order of execution, with sites instead of roles."""
        ...

    def measurement(self, measure: Measure, earlier: int, call: int) -> Measurement:
        """Return what the tensor of a call shows, compared with that of an earlier call; both are counted from 1."""
        ...


@dataclass(frozen=True)
class Simulated:
    """A policy's decisions and observations in a run that was simulated.

    Attributes:
        decisions: for each call, whether each group is computed; or a row of these for each branch.
        observations: for each call, what the policy made of its measurements.
    """

    decisions: tuple[tuple[bool, ...] | Rows, ...]
    observations: tuple[Observation, ...]

    def computed(self) -> list[int]:
        """Return the calls, from 1, in which a block runs in full."""
        return [call for call, compute in enumerate(self.decisions, 1) if any(map(any, rows_of(compute)))]


def simulate(policy: Policy[Any], run: Run, source: Source) -> Simulated:
    """Drive a policy through all calls of a run.

    Args:
        policy: the policy.
        run: calls, groups and timesteps.
        source: numbers that the policy's measures show.

    Raises:
        PolicyError: the policy cannot decide for such groups or calls.
    """
    state, needs = answers.start(policy, run), answers.needs_of(policy)
    measures = source.measures(needs)
    branches = range(len(run.branches)) if needs.by_branch else (None,)
    # latents and velocities have no branches
    parts = {measure: (None,) if space_of(measure.site) == "latents" else branches for measure in measures}
    last: dict[Part, int] = {}  # the call whose tensor is remembered, for each branch
    decisions: list[tuple[bool, ...] | Rows] = []
    observations: list[Observation] = []
    for call in range(1, run.calls + 1):
        context = Context(run, call, run.timesteps[call - 1])
        observed: Observation = {}

        def observe(active: Sequence[Part], state: Any, observed: Observation) -> tuple[Any, Observation]:
            if not active or any(part not in last for part in active):
                return state, observed
            shown = [
                replace(source.measurement(measure, last[measure, branch], call), branch=branch)  # noqa: B023
                for measure, branch in active
            ]
            seen, state = answers.observe(policy, state, context, shown)  # noqa: B023
            return state, {**observed, **seen}

        everything = [(measure, branch) for measure in measures for branch in parts[measure]]
        state, observed = observe([part for part in everything if part[0].early], state, observed)
        decision, state = answers.decide(policy, state, context)
        rows = decision.rows(len(run.branches))
        whole: dict[int | None, bool] = {branch: all(row) for branch, row in enumerate(rows)}
        whole[None] = all(whole.values())
        active = [part for part in everything if part[0].calls == "all" or whole[part[1]]]
        state, observed = observe([part for part in active if not part[0].early], state, observed)
        last.update({part: call for part in active if part[0].since == "measured" or whole[part[1]]})
        decisions.append(compact(rows))
        observations.append(observed)
    return Simulated(tuple(decisions), tuple(observations))


class Unchanged:
    """A source in which nothing changes much: every number of every signal is 1, which policies' own bounds ignore."""

    def measures(self, needs: Needs) -> Sequence[Measure]:
        return needs.measures

    def measurement(self, measure: Measure, earlier: int, call: int) -> Measurement:
        return Measurement(measure.site, defaultdict(lambda: (1.0,)))


def replay(
    policy: Policy[Any], timesteps: Sequence[float], places: Sequence[Place] = (Place("all"),)
) -> list[tuple[bool, ...] | Rows]:
    """Return each call's decision for groups at these places.

    Args:
        policy: a policy that measures nothing, or one of :func:`bounds`.
        timesteps: timestep of each call.
        places: where each group stands in the model.

    Raises:
        PolicyError: the policy cannot decide for such groups.
    """
    run = Run(len(timesteps), len(places), 1, tuple(places), tuple(timesteps))
    return list(simulate(policy, run, Unchanged()).decisions)


def bounds(policy: Policy[Any]) -> tuple[Policy[Any], Policy[Any]] | None:
    """Return the policies that compute the fewest and the most calls that this one can, whatever it measures.

    Both are the policy itself where it measures nothing; None where it measures and does not state its bounds.

    Raises:
        PolicyError: the policy fails, or gives no policies.
    """
    return answers.bounds(policy) if answers.needs_of(policy).measures else (policy, policy)
