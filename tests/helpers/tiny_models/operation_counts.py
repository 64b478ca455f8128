"""Stages whose floating-point operations are known: published models without weights, and the fake model."""

from typing import Any

import torch

from adacache_engines.bundle.manifest import ExportGranularity, Manifest, Term
from adacache_export.arithmetic import arithmetic
from adacache_export.convert import stage_entry
from adacache_export.families.registry import FAMILIES
from adacache_export.signals import signal_entry, signal_stages
from adacache_export.stages import Stage, hidden_of, shown_of_timestep
from adacache_runtime.caching.signals.registry import SIGNALS
from adacache_runtime.trace import CallRecord, Trace
from tests.helpers.model import fake_model


def stages_of(name: str, config: Any, granularity: ExportGranularity = "block") -> list[Stage]:
    with torch.device("meta"):
        return FAMILIES[name].stages(config, granularity=granularity)


def manifest_of(name: str, config: Any) -> Manifest:
    """Return the manifest as export writes it, with the fake model's files."""
    described, graph = FAMILIES[name].describe(config, None), fake_model.manifest().stages[0].graph
    stages = stages_of(name, config)
    sums = arithmetic(stages, described.latent, described.guidance)
    measured = signal_stages(SIGNALS.values(), hidden_of(stages), described.latent, shown_of_timestep(stages))
    graphs = {
        stage.name: graph.model_copy(update={"name": stage.name, "inputs": stage.inputs, "outputs": stage.outputs})
        for stage in (*stages, *sums, *measured)
    }
    parts = {part: getattr(described, part) for part in ("sampler", "video", "guidance", "latent", "text", "profiles")}
    parts["stages"] = tuple(stage_entry(stage, graphs[stage.name], ()) for stage in stages)
    parts["arithmetic"] = {stage.name: graphs[stage.name] for stage in sums}
    parts["signals"] = {key: signal_entry(signal, graphs) for key, signal in SIGNALS.items()}
    return fake_model.manifest().model_copy(update=parts)


TERMS = {
    "text": Term(axes=("batch", "text"), flops=1000),
    "embed": Term(axes=("batch",), flops=50),
    "final": Term(axes=("batch", "tokens"), flops=1),
    "spatial": Term(axes=("batch", "tokens", "tokens"), flops=10),
    "temporal": Term(axes=("batch", "patch_frames", "tokens"), flops=100),
}


SIZES = {"samples": 1, "batch": 2, "patch_frames": 3, "tokens": 5, "text": 4}


TEXT, ENDS, SPATIAL, TEMPORAL = 8000, 100 + 10, 500, 3000  # at these sizes


def counted_fake() -> Manifest:
    """Return the fake model's manifest with round numbers of operations."""
    plain = fake_model.manifest()
    stages = tuple(stage.model_copy(update={"flops": (TERMS[stage.kind or stage.role],)}) for stage in plain.stages)
    return plain.model_copy(update={"stages": stages})


def trace_of(*calls: tuple[bool, ...]) -> Trace:
    """Return the trace of a run with these decisions for the stack, or for each block."""
    records = tuple(CallRecord(i, 1.0, call, {}, {}, 1.0) for i, call in enumerate(calls, 1))
    return Trace(records, SIZES, "stack" if len(calls[0]) == 1 else "block")
