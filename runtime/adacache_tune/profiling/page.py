"""Write a profile as one HTML page that needs only a browser: no script, no font, no other file."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from adacache_runtime.reports.summary import milliseconds, timing
from adacache_tune.profiling.charts import calls_chart, elapsed_chart, parts_bar, schedule_chart
from adacache_tune.profiling.engine_latency import EngineLatency
from adacache_tune.profiling.profile import Profile
from adacache_tune.profiling.tables import label, megabytes
from adacache_tune.profiling.timeline import Timeline

TOP_LAYERS = 12  # of each engine; all are in the JSON
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
LEGEND = '<p class="legend"><span><i class="computed"></i>computed</span> <span><i class="reused"></i>cached</span></p>'


def page(profile: Profile) -> str:
    """Return the whole page."""
    bundle = profile.bundle
    title = f"Profile of {bundle.folder.resolve().name}"
    sections = [
        _head(profile, title),
        _generation(profile.generation) if profile.generation else _note(profile.generation_skipped or ""),
        _engines(profile),
        _layers(profile.engines),
        _memory(profile),
        _machine(profile),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


def _head(profile: Profile, title: str) -> str:
    request, manifest = profile.request, profile.bundle.manifest
    frames = f"{request['frames']} frame{'' if request['frames'] == 1 else 's'}"
    facts = [
        f"{manifest.family}, {manifest.precision}",
        profile.backend,
        f"{request['height']} × {request['width']} pixels, {frames}, {request['steps']} steps",
        f"policy {request['policy']}, one residual a {request['granularity']}",
        str(request["text"]),
    ]
    figures = _figures(profile.generation) if profile.generation else ""
    return f'<header><h1>{escape(title)}</h1><p class="sub">{" · ".join(map(escape, facts))}</p>{figures}</header>'


def _figures(timeline: Timeline) -> str:
    trace, times = timeline.trace, timing(timeline.trace)
    efficiency = timeline.efficiency()
    shown = [
        ("speed-up", f"{times.speed_up:.2f} ×" if times.speed_up is not None else "unknown"),
        ("computed calls", f"{len(trace.computed())} of {len(trace.calls)}"),
        ("a computed call", milliseconds(times.computed_ms) if times.computed_ms is not None else "none"),
        ("a cached call", milliseconds(times.reused_ms) if times.reused_ms is not None else "none"),
        ("efficiency", f"{efficiency:.0%}" if efficiency is not None else "unknown"),
        ("loop overhead", f"{times.overhead:.1%}"),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in shown)
    return f'<dl class="figures">{cells}</dl>'


def _generation(timeline: Timeline) -> str:
    trace, parts = timeline.trace, timeline.parts()
    legend = " ".join(
        f'<span><i class="p{index % 5}"></i>{escape(name)} {share:.1%}</span>'
        for index, (name, (_, share)) in enumerate(parts.items())
    )
    total = milliseconds(timing(trace).wall_ms)
    return (
        f"<section><h2>Schedule</h2>{LEGEND}{schedule_chart(trace)}</section>\n"
        f"<section><h2>Time line</h2><p>{total} for all calls. Loading all engines took "
        f"{milliseconds(timeline.load_ms)}, and a first call before, on cold engines, "
        f"{milliseconds(timeline.first_call_ms)}.</p>{LEGEND}{elapsed_chart(trace)}{calls_chart(trace)}</section>\n"
        f'<section><h2>Parts of a call</h2><p class="legend">{legend}</p>{parts_bar(parts)}</section>'
    )


def _engines(profile: Profile) -> str:
    stages = profile.generation.stages if profile.generation else {}
    longest = max((engine.p95_ms for engine in profile.engines), default=0) or 1.0
    rows = []
    for engine in profile.engines:
        share = f"{stages[engine.name].share:.1%}" if engine.name in stages else ""
        times = (engine.load_ms, engine.first_ms, engine.median_ms, engine.p95_ms)
        rows.append(
            f"<tr><th>{escape(engine.name)}</th><td class=kind>{engine.kind}</td>"
            + "".join(f"<td>{milliseconds(value)}</td>" for value in times)
            + f'<td class="bar">{_bar(engine.median_ms / longest, engine.p95_ms / longest, engine.kind)}</td>'
            + (f"<td>{share}</td>" if stages else "")
            + "</tr>"
        )
    runners = ", ".join(sorted({engine.runner for engine in profile.engines}))
    iterations = max((engine.iterations for engine in profile.engines), default=0)
    return (
        f"<section><h2>Time per stage</h2><p>{iterations} warm calls of each engine by itself, measured with "
        f"{escape(runners)}; the bar ends at the median, the line at the 95th percentile.</p><table><thead><tr>"
        "<th>engine</th><th class=kind>kind</th><th>load</th><th>first call</th><th>median</th><th>p95</th>"
        f'<th class="bar"></th>{"<th>of generation</th>" if stages else ""}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></section>"
    )


def _bar(share: float, tail: float, kind: str) -> str:
    colour = "reused" if kind == "reuse" else "computed" if kind == "block" else "other"
    return (
        f'<div><span class="{colour}" style="width:{100 * share:.2f}%"></span>'
        f'<span class="tail" style="left:{100 * share:.2f}%;width:{100 * max(tail - share, 0):.2f}%"></span></div>'
    )


def _layers(engines: Sequence[EngineLatency]) -> str:
    blocks = []
    for engine in engines:
        if not engine.layers:
            continue
        total = sum(layer.median_ms for layer in engine.layers) or 1.0
        rows = "".join(
            f"<tr><th>{escape(layer.name)}</th><td class=kind>{escape(layer.op)}</td>"
            f"<td>{milliseconds(layer.median_ms)}</td><td>{layer.median_ms / total:.1%}</td></tr>"
            for layer in engine.layers[:TOP_LAYERS]
        )
        more = len(engine.layers) - TOP_LAYERS
        rest = f"<p>{more} more in the file of --json</p>" if more > 0 else ""
        blocks.append(
            f"<details><summary>{escape(engine.name)}, {len(engine.layers)} layer{'s' * (len(engine.layers) > 1)}, "
            f"{milliseconds(total)}</summary><table><tbody>{rows}</tbody></table>{rest}</details>"
        )
    return f"<section><h2>Slowest layers</h2>{''.join(blocks)}</section>" if blocks else ""


def _memory(profile: Profile) -> str:
    most = max(profile.memory.values(), default=0) or 1
    rows = "".join(
        f"<tr><th>{label(kind)}</th><td>{megabytes(nbytes)}</td>"
        f'<td class="bar"><div><span class="other" style="width:{100 * nbytes / most:.2f}%"></span></div></td></tr>'
        for kind, nbytes in profile.memory.items()
    )
    return f"<section><h2>Memory</h2><table><tbody>{rows}</tbody></table></section>"


def _machine(profile: Profile) -> str:
    facts = {
        name.removesuffix("_nbytes"): megabytes(int(value)) if name.endswith("_nbytes") else str(value)
        for name, value in profile.machine.items()
    } | dict(profile.versions)
    rows = "".join(
        f'<tr><th>{escape(name)}</th><td class="word">{escape(value)}</td></tr>' for name, value in facts.items()
    )
    return (
        f"<section><h2>Machine and versions</h2><table><tbody>{rows}</tbody></table></section>\n"
        f"<section><h2>Command</h2><pre>{escape(profile.command)}</pre></section>"
    )


def _note(words: str) -> str:
    return f"<p>No generation was measured: {escape(words)}.</p>"
