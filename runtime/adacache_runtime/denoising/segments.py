"""The calls of a generation by expert: each run of calls that one transformer makes is a run of its own to a policy."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adacache_engines.bundle.manifest import Manifest
from adacache_runtime.caching.groups import group_stages, run_of
from adacache_runtime.caching.policy import Context, Granularity, Run
from adacache_runtime.samplers.update import TRAIN_TIMESTEPS, Update

CONDITIONAL = "conditional"


@dataclass(frozen=True)
class Segment:
    """Consecutive calls that one expert makes.

    Attributes:
        expert: index of the expert.
        guidance: guidance scale of these calls.
        before: number of calls of the generation before them.
        run: facts about these calls that the policy is told before the first.
    """

    expert: int
    guidance: float
    before: int
    run: Run

    def context(self, number: int) -> Context:
        """Return what the policy is told of a call, which is number ``number`` of the generation, from 1."""
        call = number - self.before
        return Context(self.run, call, self.run.timesteps[call - 1])


def segments(
    manifest: Manifest,
    updates: Sequence[Update],
    granularity: Granularity,
    units: int,
    guidance: float | None = None,
    guidance_2: float | None = None,
) -> tuple[Segment, ...]:
    """Divide the calls of a generation among the experts.

    Args:
        manifest: the bundle's manifest.
        updates: the sampler's update for each call.
        granularity: groups that share a cached residual.
        units: number of units that decide together.
        guidance, guidance_2: see :func:`guidance_scales`.
    """
    scales = guidance_scales(manifest, guidance, guidance_2)
    branches = branches_of(manifest.guidance.order, scales)
    made, before = [], 0
    for expert, calls in itertools.groupby(updates, lambda update: _expert(manifest, update)):
        own = list(calls)
        run = run_of(group_stages(manifest, granularity, expert), own, units, branches)
        run = replace(run, before=before, after=len(updates) - before - len(own))
        made.append(Segment(expert, scales[expert], before, run))
        before += len(own)
    return tuple(made)


def guidance_scales(manifest: Manifest, guidance: float | None = None, guidance_2: float | None = None) -> list[float]:
    """Return the guidance scale of each expert.

    Args:
        manifest: the bundle's manifest.
        guidance: guidance scale of all experts; None = each expert's own, or the bundle's default.
        guidance_2: guidance scale of all experts but the first; None = as of ``guidance``.
    """
    default = manifest.sampler.guidance
    own = [default if expert.guidance is None else expert.guidance for expert in manifest.experts]
    scales = own if guidance is None else [guidance] * len(own)
    return scales if guidance_2 is None else [scales[0], *(guidance_2 for _ in scales[1:])]


def branches_of(order: Sequence[str], guidances: Sequence[float]) -> tuple[str, ...]:
    """Return the guidance branches that a generation evaluates: the conditional one alone where no call is guided.

    Args:
        order: the model's branches, in the order of a batch.
        guidances: guidance scales of all calls; with 1 the conditional branch is the whole velocity.
    """
    return (CONDITIONAL,) if all(guidance == 1 for guidance in guidances) else tuple(order)


def _expert(manifest: Manifest, update: Update) -> int:
    """Return the index of the expert of a call; rounding may take a first timestep beyond that of pure noise."""
    return manifest.expert_at(min(float(update.timestep[0]), TRAIN_TIMESTEPS))
