"""Groups of block stages that a policy treats alike, and what their residuals take."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from adacache_engines.bundle.manifest import Manifest, StageEntry
from adacache_engines.bundle.tensors import NUMPY_DTYPES, TensorSpec
from adacache_runtime.caching.policy import GRANULARITIES, Granularity, Run
from adacache_runtime.samplers.update import Update

TEXT = "text"  # the stage that runs once a generation


def granularities(manifest: Manifest) -> tuple[Granularity, ...]:
    """Those that a bundle's stages allow, the coarsest first."""
    return GRANULARITIES if manifest.granularity == "module" else GRANULARITIES[:-1]


def group_stages(manifest: Manifest, granularity: Granularity) -> list[list[StageEntry]]:
    """Stages that a policy treats alike: the whole ``model``, the ``stack`` of all blocks, the ``first`` block and the
    others, each ``block``, or each ``module`` of a block.
    """
    if granularity == "model":
        return [[stage for stage in manifest.stages if stage.graph.name != TEXT]]
    stages = [stage for stage in manifest.stages if stage.block]
    if granularity == "stack":
        return [stages]
    if granularity == "module":
        return [[stage] for stage in stages]
    blocks = [list(group) for _, group in itertools.groupby(stages, lambda stage: stage.graph.name.split(".")[:2])]
    return blocks if granularity == "block" else [blocks[0], [stage for block in blocks[1:] for stage in block]]


def group_name(group: Sequence[StageEntry]) -> str:
    """Of its only stage, or its first and last."""
    first, last = group[0].graph.name, group[-1].graph.name
    return first if first == last else f"{first} to {last}"


def run_of(
    groups: Sequence[Sequence[StageEntry]],
    updates: Sequence[Update],
    units: int,
    branches: tuple[str, ...] = ("conditional",),
) -> Run:
    """What a policy is told before the first call."""
    timesteps = tuple(float(update.timestep[0]) for update in updates)
    names = tuple(map(group_name, groups))
    return Run(len(updates), len(names), units, names, timesteps, branches)


def hidden_spec(manifest: Manifest) -> TensorSpec:
    """Of the hidden state between blocks."""
    block = next(stage for stage in manifest.stages if stage.block)
    return next(spec for spec in block.graph.inputs if spec.name == "hidden")


def residual_nbytes(manifest: Manifest, sizes: Mapping[str, int], granularity: Granularity) -> int:
    """Memory that the cached residuals take, one a group."""
    if granularity == "model":  # of the latents' shape
        axes = ("samples", "frames", "height", "width")
        return manifest.latent.channels * np.dtype(np.float32).itemsize * math.prod(sizes[axis] for axis in axes)
    spec = hidden_spec(manifest)
    values = math.prod(spec.shape(sizes))
    return values * NUMPY_DTYPES[spec.dtype].itemsize * len(group_stages(manifest, granularity))
