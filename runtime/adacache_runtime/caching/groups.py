"""Groups of block stages that a policy treats alike, and the memory that their residuals take."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from adacache_engines.bundle.manifest import Manifest, StageEntry
from adacache_engines.bundle.tensors import NUMPY_DTYPES, TensorSpec
from adacache_runtime.caching.policy import GRANULARITIES, Granularity, Place, Run
from adacache_runtime.samplers.update import Update


def granularities(manifest: Manifest) -> tuple[Granularity, ...]:
    """Return the granularities that a bundle's stages allow, the coarsest first."""
    return GRANULARITIES if manifest.granularity == "module" else GRANULARITIES[:-1]


def group_stages(manifest: Manifest, granularity: Granularity, expert: int = 0) -> list[list[StageEntry]]:
    """Divide an expert's stages into the groups that a policy treats alike.

    Args:
        manifest: the bundle's manifest.
        granularity: what a group is: the whole ``model``, the ``stack`` of all blocks, the ``first`` block or the
            others, each ``block``, or each ``module`` of a block.
        expert: index of the expert.
    """
    if granularity == "model":
        return [[stage for stage in manifest.stages if stage.expert == expert and not stage.per_generation]]
    stages = manifest.stages_of("block", expert=expert)
    if granularity == "stack":
        return [[*stages]]
    if granularity == "module":
        return [[stage] for stage in stages]
    blocks = [list(group) for _, group in itertools.groupby(stages, lambda stage: (stage.kind, stage.index))]
    return blocks if granularity == "block" else [blocks[0], [stage for block in blocks[1:] for stage in block]]


def place_of(group: Sequence[StageEntry]) -> Place:
    """Return where a group stands in the model."""
    first, last = group[0], group[-1]
    name = first.graph.name if len(group) == 1 else f"{first.graph.name} to {last.graph.name}"
    if not first.block or any((stage.kind, stage.index) != (first.kind, first.index) for stage in group):
        return Place(name)
    return Place(name, first.kind, first.index, first.part if len(group) == 1 else None)


def run_of(
    groups: Sequence[Sequence[StageEntry]],
    updates: Sequence[Update],
    units: int,
    branches: tuple[str, ...] = ("conditional",),
) -> Run:
    """Return what a policy is told before the first call."""
    timesteps = tuple(float(update.timestep[0]) for update in updates)
    places = tuple(map(place_of, groups))
    return Run(len(updates), len(places), units, places, timesteps, branches)


def hidden_spec(manifest: Manifest) -> TensorSpec:
    """Return name, dtype and axes of the state between blocks."""
    block = manifest.stages_of("block")[0]
    return next(spec for spec in block.graph.inputs if spec.name == "hidden")


def residual_nbytes(manifest: Manifest, sizes: Mapping[str, int], granularity: Granularity) -> int:
    """Return the bytes that cached residuals take, one for each group."""
    if granularity == "model":  # of the latents' shape
        axes = ("samples", "frames", "height", "width")
        return manifest.latent.channels * np.dtype(np.float32).itemsize * math.prod(sizes[axis] for axis in axes)
    spec = hidden_spec(manifest)
    values = math.prod(spec.shape(sizes))
    return values * NUMPY_DTYPES[spec.dtype].itemsize * len(group_stages(manifest, granularity))
