"""Tables for a terminal: a profile, and a comparison of backends."""

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from adacache_runtime.reports.summary import milliseconds, ranges, timing
from adacache_tune.profiling.comparison import Difference
from adacache_tune.profiling.engine_latency import EngineLatency
from adacache_tune.profiling.profile import Profile
from adacache_tune.profiling.timeline import Timeline

TOP_LAYERS = 5  # of each engine; all are in the JSON


def profile_tables(profile: Profile) -> RenderableType:
    """Return tables of engines, the slowest layers of each if they were measured, the generation, and memory."""
    parts: list[RenderableType] = [_engines(profile), ""]
    if any(engine.layers for engine in profile.engines):
        parts += [_layers(profile.engines), ""]
    if profile.generation:
        parts += [_generation(profile.generation), ""]
    if profile.generation_skipped:
        parts += [f"no generation was measured: {profile.generation_skipped}", ""]
    return Group(*parts, _memory(profile))


def megabytes(nbytes: int) -> str:
    """Return a size for people: ``0.0035 MB``, ``12.3 MB``, ``1.45 GB``."""
    if nbytes >= 1e9:
        return f"{nbytes / 1e9:.2f} GB"
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 1e5 else f"{nbytes / 1e6:.2g} MB"


def label(kind: str) -> str:
    """Return a kind of memory in words."""
    return {
        "weights": "weights (file)",
        "plans": "compiled plans (files)",
        "activations": "activations",
        "hidden_states": "hidden states",
        "probes": "probes",
        "latents": "latents and conditions",
        "residuals_model": "cached residual, --granularity model",
        "residuals_stack": "cached residuals, --granularity stack",
        "residuals_first": "cached residuals, --granularity first",
        "residuals_block": "cached residuals, --granularity block",
        "residuals_module": "cached residuals, --granularity module",
    }[kind]


def _numbers(title: str, *columns: str) -> Table:
    """Return a table whose columns are numbers; the caller adds the others."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, justify="left" if column.startswith("<") else "right", no_wrap=True)
        table.columns[-1].header = column.removeprefix("<")
    return table


def _engines(profile: Profile) -> Table:
    title = f"engines on {profile.backend}"
    stages = profile.generation.stages if profile.generation else {}
    last = ["of generation"] if stages else []
    table = _numbers(title, "<engine", "<kind", "load", "first call", "median", "p95", *last)
    for engine in profile.engines:
        times = (engine.load_ms, engine.first_ms, engine.median_ms, engine.p95_ms)
        share = [f"{stages[engine.name].share:.1%}" if engine.name in stages else ""] if stages else []
        table.add_row(engine.name, engine.kind, *map(milliseconds, times), *share)
    return table


def _layers(engines: Sequence[EngineLatency]) -> Table:
    table = _numbers("slowest layers", "<engine", "<layer", "<op", "median", "of the engine")
    for engine in engines:
        total = sum(layer.median_ms for layer in engine.layers) or 1.0
        for index, layer in enumerate(engine.layers[:TOP_LAYERS]):
            name = Text(layer.name, overflow="ellipsis")
            name.truncate(48, overflow="ellipsis")
            first = engine.name if index == 0 else ""
            table.add_row(first, name, layer.op, milliseconds(layer.median_ms), f"{layer.median_ms / total:.1%}")
    return table


def _generation(timeline: Timeline) -> RenderableType:
    trace, times = timeline.trace, timing(timeline.trace)
    computed, calls = trace.computed(), len(trace.calls)
    facts = _numbers("a whole generation", "<", "<")
    facts.show_header = False
    facts.add_row("computed calls", f"{len(computed)} of {calls}: {ranges(computed)}")
    facts.add_row("loading all engines", milliseconds(timeline.load_ms))
    facts.add_row("the first call, cold", milliseconds(timeline.first_call_ms))
    if times.computed_ms is not None:
        facts.add_row("a computed call", milliseconds(times.computed_ms))
    if times.reused_ms is not None:
        facts.add_row("a cached call", milliseconds(times.reused_ms))
    facts.add_row("all calls", milliseconds(times.wall_ms))
    facts.add_row("loop overhead", f"{times.overhead:.1%}")
    if times.speed_up is not None:
        facts.add_row("speed-up", f"{times.speed_up:.2f} times over computing every call, from this run's own calls")
        ideal = calls / len(computed)
        facts.add_row(
            "efficiency", f"{timeline.efficiency():.1%}, the speed-up over calls / computed calls = {ideal:.2f}"
        )
    parts = _numbers("", "<part", "time", "share")
    for name, (ms, share) in timeline.parts().items():
        parts.add_row(name, milliseconds(ms), f"{share:.1%}")
    return Group(facts, parts)


def _memory(profile: Profile) -> Table:
    table = _numbers("memory", "<", "")
    table.show_header = False
    for kind, nbytes in profile.memory.items():
        table.add_row(label(kind), megabytes(nbytes))
    return table


def comparison_table(title: str, differences: Sequence[Difference]) -> Table:
    """Return a table of the worst output of each engine, by how much of its tolerance it takes."""
    table = _numbers(title, "<engine", "<worst output", "abs. difference", "allowed", "rel. difference", "<")
    for name in dict.fromkeys(difference.name for difference in differences):
        own = [difference for difference in differences if difference.name == name]
        worst = max(own, key=lambda one: (not one.passed, _taken(one)))
        verdict = Text("ok", style="green") if worst.passed else Text("DIFFERS", style="bold red")
        numbers = (worst.max_abs, worst.allowed_abs, worst.max_rel)
        table.add_row(name, worst.output, *(f"{number:.2e}" for number in numbers), verdict)
    return table


def _taken(difference: Difference) -> float:
    share = difference.max_abs / difference.allowed_abs
    return share if math.isfinite(share) else math.inf
