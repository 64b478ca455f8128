"""Which calls a policy computes, found without a model."""

from collections.abc import Sequence
from typing import Any

from adacache_runtime.policies.adacache import AdaCache
from adacache_runtime.policy import Context, Measurement, Policy, Run

UNCHANGED = Measurement("", (0.0,), (1.0,))


def bounds(policy: Policy[Any]) -> tuple[Policy[Any], Policy[Any]]:
    """Policies that compute the fewest and the most calls that this one can, whatever they measure.

    Both are the policy itself where it measures nothing.
    """
    if not isinstance(policy, AdaCache):
        return policy, policy
    rates = [rate for _, rate in policy.codebook]
    fewest, most = (AdaCache(codebook=((1.0, rate),)) for rate in (max(rates), min(rates)))
    return fewest, most


def replay(policy: Policy[Any], timesteps: Sequence[float], names: Sequence[str] = ("all",)) -> list[tuple[bool, ...]]:
    """Each call's decision for groups of these names, if nothing ever changes.

    Raises:
        PolicyError: the policy cannot decide for such groups.
    """
    run = Run(len(timesteps), len(names), 1, tuple(names), tuple(timesteps))
    state = policy.start(run)
    decided: list[tuple[bool, ...]] = []
    for call, timestep in enumerate(timesteps, 1):
        context = Context(run, call, timestep)
        decision, state = policy.decide(state, context)
        # the first computed call has nothing to compare with
        if policy.sites != () and decided and all(decision.compute):
            _, state = policy.observe(state, context, [UNCHANGED])
        decided.append(decision.compute)
    return decided
