"""A profile: the numbers, the bundle and the machine; tables, JSON and the page are views of it.

The JSON's keys stay as they are within ``schema_version``; more may be added. Times are milliseconds, sizes bytes.

    schema_version  1
    command         the line that made it
    bundle          path, family, precision, producer
    backend         what ran the engines
    machine         processor, cores, memory_nbytes, system, python; gpu if one was used
    versions        package -> version
    request         height, width, frames, steps, guidance (and guidance_2 of a second expert), policy,
                    granularity, text, sizes (axis -> size)
    engines         a list: name, kind (stage, block, reuse, arithmetic, encoder), runner, load_ms, first_ms,
                    median_ms, p95_ms, iterations, layers (slowest first: name, op, median_ms; empty without --layers)
    generation      null if none was measured, else: load_ms, first_call_ms, calls (number), computed_calls, wall_ms,
                    engine_ms, overhead, computed_call_ms, reused_call_ms, speed_up, efficiency,
                    parts (part -> ms, share), stages (engine -> calls, ms, share), timeline (a list, as of --trace)
    generation_skipped  why there is none; null if there is one
    memory          kind -> bytes: weights, plans, activations, hidden_states, probes, latents (of a generation, if one
                    was measured), residuals_model, residuals_stack, residuals_first, residuals_block,
                    residuals_module
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adacache_engines.bundle.files import Bundle
from adacache_runtime.reports.summary import timing
from adacache_tune.profiling.engine_latency import EngineLatency
from adacache_tune.profiling.timeline import Timeline

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Profile:
    """The measurements of one run of the command.

    Attributes:
        command: the command line.
        bundle: the profiled bundle.
        backend: what ran the engines.
        machine, versions: the machine, and versions of packages.
        request: the video, its text and how it was sampled, for people: name -> value.
        sizes: sizes of the dynamic axes.
        engines: the engines, measured one by one.
        generation: a whole generation, if it was measured.
        generation_skipped: why no generation was measured.
        memory: bytes by kind.
    """

    command: str
    bundle: Bundle
    backend: str
    machine: Mapping[str, str | int]
    versions: Mapping[str, str]
    request: Mapping[str, str | int | float]
    sizes: Mapping[str, int]
    engines: Sequence[EngineLatency]
    generation: Timeline | None
    generation_skipped: str | None
    memory: Mapping[str, int]


def to_json(profile: Profile) -> str:
    """Return the profile as JSON, with the keys that the module lists."""
    manifest = profile.bundle.manifest
    content = {
        "schema_version": SCHEMA_VERSION,
        "command": profile.command,
        "bundle": {
            "path": str(profile.bundle.folder),
            "family": manifest.family,
            "precision": manifest.precision,
            "producer": manifest.producer,
        },
        "backend": profile.backend,
        "machine": dict(profile.machine),
        "versions": dict(profile.versions),
        "request": {**profile.request, "sizes": dict(profile.sizes)},
        "engines": [asdict(engine) for engine in profile.engines],
        "generation": _generation(profile.generation) if profile.generation else None,
        "generation_skipped": profile.generation_skipped,
        "memory": dict(profile.memory),
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _generation(timeline: Timeline) -> dict[str, Any]:
    trace, times = timeline.trace, timing(timeline.trace)
    return {
        "load_ms": timeline.load_ms,
        "first_call_ms": timeline.first_call_ms,
        "calls": len(trace.calls),
        "computed_calls": len(trace.computed()),
        "wall_ms": times.wall_ms,
        "engine_ms": times.engine_ms,
        "overhead": times.overhead,
        "computed_call_ms": times.computed_ms,
        "reused_call_ms": times.reused_ms,
        "speed_up": times.speed_up,
        "efficiency": timeline.efficiency(),
        "parts": {name: {"ms": ms, "share": share} for name, (ms, share) in timeline.parts().items()},
        "stages": {name: asdict(stage) for name, stage in timeline.stages.items()},
        "timeline": json.loads(trace.to_json())["calls"],
    }
