"""Records of made-up generations for calibration, and a bundle whose stages show less."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import StageEntry
from adacache_runtime.caching.policy import BLOCK_INPUT, DEFAULT, VELOCITY
from adacache_runtime.caching.signals.signal import at_stride
from adacache_tune.calibration.records import RESIDUAL, Record, Site

DEFAULT_SITE = "temporal.0.attn"
MODULATED = "spatial.0.modulated"


def without_probes(stage: StageEntry) -> StageEntry:
    """Return the stage without its probes, and the graph without their outputs."""
    outputs = tuple(spec for spec in stage.graph.outputs if spec.name not in stage.probes.values())
    return stage.model_copy(update={"probes": {}, "graph": stage.graph.model_copy(update={"outputs": outputs})})


def site(tensors: NDArray[Any], gaps: int) -> Site:
    """Return what is recorded of a tensor with one value a call, (calls, frames, values)."""
    calls = len(tensors)
    change, magnitude = np.full((2, gaps, calls), np.nan)
    for gap in range(1, gaps + 1):
        change[gap - 1, gap:] = np.abs(tensors[gap:] - tensors[:-gap]).sum((1, 2))
        magnitude[gap - 1, gap:] = np.abs(tensors[:-gap]).sum((1, 2))
    later, earlier = tensors[:, 1:], tensors[:, :-1]
    moved, size = np.abs(later - earlier).sum((1, 2)), (np.abs(later) + np.abs(earlier)).sum((1, 2))
    motion = {at_stride("motion", 1): moved[None], at_stride("motion_magnitude", 1): size[None]}
    return {"change": change, "magnitude": magnitude, **motion}


def toy(residuals: NDArray[Any], gaps: int, weights: NDArray[Any] | None = None, seed: int = 0) -> Record:
    """Return the record of a model whose velocity is its residual (calls, frames, values), times a weight a call."""
    calls = len(residuals)
    weights = np.full(calls, 1 / calls) if weights is None else weights
    error = np.full((gaps, calls, residuals[0].size), np.nan, np.float32)
    for gap in range(1, gaps + 1):
        off = (residuals[:-gap] - residuals[gap:]).reshape(calls - gap, -1)
        error[gap - 1, gap:] = weights[gap:, None] * off
    modulated = np.cumsum(np.random.default_rng(seed).random((calls, 2, 5)), axis=0) + 5
    sites = {DEFAULT_SITE: residuals, RESIDUAL: residuals, VELOCITY: residuals**3, MODULATED: modulated}
    timesteps = tuple(np.linspace(1000, 1, calls).tolist())
    found = {name: site(tensors, gaps) for name, tensors in sites.items()}
    return Record(timesteps, found, {DEFAULT: (DEFAULT_SITE,), BLOCK_INPUT: (MODULATED,)}, error)


def wandering(calls: int, seed: int, gaps: int = 0) -> Record:
    """Return a record whose residuals change much at first, and ever less."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((calls, 2, 8)) * np.exp(-np.arange(calls) / 6)[:, None, None]
    return toy(3 + np.cumsum(steps, axis=0), gaps or calls - 1, seed=seed)
