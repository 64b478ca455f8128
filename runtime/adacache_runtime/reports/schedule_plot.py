"""A picture of a trace: when the model was computed, why, and what each call cost."""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from adacache_engines.errors import InputError, require
from adacache_runtime.media.files import check_writable, writing
from adacache_runtime.reports.summary import milliseconds
from adacache_runtime.trace import Trace, lanes

# Okabe and Ito's colours, which people with any colour vision tell apart
COMPUTED, REUSED = "#0072B2", "#E69F00"
DISTANCE, METRIC = "#333333", "#D55E00"
PARTS = ("#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#999999")
KINDS = ((True, "computed", COMPUTED, "o"), (False, "reused", REUSED, "s"))

Draw = Callable[[Any, Trace], None]


def plot_schedule(trace: Trace, path: Path, title: str) -> None:
    """Draw distance, motion and rate per step, the computed steps, and the time per call.

    A number that no call observed has no panel. Needs the extra ``plot``. The same trace gives the same bytes.

    Args:
        trace: trace of a generation.
        path: file to write, which ends in ``.png``.
        title: title of the picture, a single line.

    Raises:
        InputError: the file has another suffix, its folder cannot be written, or the trace has no calls.
        MissingDependencyError: matplotlib is not installed.
    """
    check_plot(path)
    if not trace.calls:
        raise InputError("the trace has no calls: there is nothing to plot")
    figure = _figure(trace, title)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150, metadata={"Software": None})
    with writing(path) as file:
        file.write(picture.getbuffer())


def check_plot(path: Path) -> None:
    """Raise what :func:`plot_schedule` would raise, before there is a trace."""
    require("matplotlib", "plot")
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: the schedule is drawn as a .png; name the file so")
    check_writable(path)


def _figure(trace: Trace, title: str) -> Any:
    figures = require("matplotlib.figure", "plot")
    agg = require("matplotlib.backends.backend_agg", "plot")
    seen = [record.observation for record in trace.calls]
    candidates: list[tuple[Draw, bool, float]] = [
        (_draw_schedule, True, 0.25 if len(lanes(trace)[0]) == 1 else 0.8),
        (_draw_distance, any(_finite(one.get("distance")) for one in seen), 1.7),
        (_draw_motion, any(_finite(one.get("motion")) for one in seen), 1.2),
        (_draw_rate, any(_finite(one.get("rate")) for one in seen), 1.2),
        (_draw_times, True, 1.7),
        (_draw_parts, trace.engine_ms() > 0, 0.4 * len(_kinds(trace))),
    ]
    panels = [(draw, height) for draw, shown, height in candidates if shown]
    heights = [height for _, height in panels]
    width = 9.0 if len(trace.calls) <= 50 else 12.0
    figure = figures.Figure(figsize=(width, sum(heights) + 0.45 * len(panels) + 0.6), layout="constrained")
    agg.FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for (draw, _), axis in zip(panels, axes, strict=True):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        draw(axis, trace)
    steps = [axis for (draw, _), axis in zip(panels, axes, strict=True) if draw is not _draw_parts]
    for axis in steps:
        _number_steps(axis, trace, last=axis is steps[-1])
    figure.align_ylabels(steps)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold", parse_math=False)
    return figure


def _number_steps(axis: Any, trace: Trace, last: bool) -> None:
    count = len(trace.calls)
    apart = next((step for step in (1, 2, 5, 10, 20, 50, 100) if count / step <= 12), 200)
    axis.set_xlim(0.5, count + 0.5)
    axis.set_xticks([1, *range(apart, count + 1, apart)] if apart > 1 else range(1, count + 1))
    axis.tick_params(labelbottom=last)
    if last:
        axis.set_xlabel("step", fontsize=9)


def _draw_schedule(axis: Any, trace: Trace) -> None:
    """Draw a column of cells for each call, its groups of blocks from top to bottom."""
    rows = lanes(trace)
    groups = len(rows[0])
    for computed, label, colour, _ in _kinds(trace):
        cells = [(step, group) for step, row in enumerate(rows, 1) for group in range(groups) if row[group] == computed]
        left, bottom = [step - 0.44 for step, _ in cells], [group for _, group in cells]
        axis.bar(left, 1, 0.88, bottom, align="edge", color=colour, label=label)
    axis.set_ylim(groups, 0)
    axis.set_ylabel("groups" if groups > 1 else "", fontsize=9)
    axis.set_yticks([])
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.tick_params(bottom=False)
    _legend(axis)


def _draw_distance(axis: Any, trace: Trace) -> None:
    steps, distances = _measured(trace, "distance")
    axis.plot(steps, distances, "-o", color=DISTANCE, markersize=4, linewidth=1.3, label="distance")
    at, metrics = _measured(trace, "metric")
    if any(_finite(record.observation.get("motion")) for record in trace.calls):
        axis.plot(at, metrics, "--D", color=METRIC, markersize=3.5, linewidth=1.1, label="distance × motion factor")
        _legend(axis)
    _finish(axis, trace, "distance\n(relative L1 per step)")


def _draw_motion(axis: Any, trace: Trace) -> None:
    axis.plot(*_measured(trace, "motion"), "-o", color=DISTANCE, markersize=4, linewidth=1.3)
    _finish(axis, trace, "motion\n(relative L1 per frame)")


def _draw_rate(axis: Any, trace: Trace) -> None:
    steps, rates = _measured(trace, "rate")
    axis.step([*steps, steps[-1] + rates[-1]], [*rates, rates[-1]], where="post", color=DISTANCE, linewidth=1.3)
    axis.plot(steps, rates, "o", color=DISTANCE, markersize=4)
    _finish(axis, trace, "rate\n(steps to the next)")
    axis.yaxis.get_major_locator().set_params(integer=True)


def _draw_times(axis: Any, trace: Trace) -> None:
    times = [record.wall_ms for record in trace.calls]
    seconds = max(times) >= 1e4
    for computed, _, colour, marker in _kinds(trace):
        at = [(r.call, r.wall_ms / (1e3 if seconds else 1)) for r in trace.calls if r.computed == computed]
        axis.plot(*zip(*at, strict=True), marker, color=colour, markersize=4.5)
    ratio = max(times) / min(times) if min(times) > 0 else 1
    if ratio > 8:  # a reused call takes about a hundredth of a computed one
        axis.set_yscale("log")
        axis.yaxis.get_major_locator().set_params(subs=(1, 2, 5) if ratio < 50 else (1,))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.margins(y=0.15)
    _finish(axis, trace, f"wall-clock time\nper call ({'s' if seconds else 'ms'})")


def _draw_parts(axis: Any, trace: Trace) -> None:
    """Draw where the mean call of each kind spends its time inside engines."""
    names = list(dict.fromkeys(name for record in trace.calls for name in record.engine_ms))
    kinds = _kinds(trace)
    means = [
        {name: fmean(r.engine_ms.get(name, 0) for r in trace.calls if r.computed == kind[0]) for name in names}
        for kind in kinds
    ]
    totals = [sum(mean.values()) for mean in means]
    done = [0.0] * len(kinds)
    for index, name in enumerate(names):
        share = [100 * mean[name] / total if total else 0 for mean, total in zip(means, totals, strict=True)]
        axis.barh(
            range(len(kinds)), share, 0.7, done, color=PARTS[index % len(PARTS)], edgecolor="white", lw=0.5, label=name
        )
        done = [before + more for before, more in zip(done, share, strict=True)]
    axis.set_yticks(range(len(kinds)), [f"{k[1]}\n{milliseconds(t)}" for k, t in zip(kinds, totals, strict=True)])
    axis.set_ylim(len(kinds) - 0.5, -0.5)
    axis.set_xlim(0, 100)
    axis.set_xlabel("share of the mean call's time in engines (%)", fontsize=9)
    _legend(axis)


def _finish(axis: Any, trace: Trace, label: str) -> None:
    """Add a label, a grid and a band behind each computed step, and let the axis begin at 0."""
    axis.set_ylabel(label, fontsize=9)
    if axis.get_yscale() == "linear":
        axis.set_ylim(0, 1.1 * axis.dataLim.y1 or 1)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    for step in trace.computed():
        axis.axvspan(step - 0.5, step + 0.5, color=COMPUTED, alpha=0.1, linewidth=0, zorder=0)


def _legend(axis: Any) -> None:
    """Put the legend above the panel, where there is no data."""
    axis.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=5,
        frameon=False,
        fontsize=8,
        borderaxespad=0.2,
        handlelength=1.4,
    )


def _kinds(trace: Trace) -> Sequence[tuple[bool, str, str, str]]:
    return [kind for kind in KINDS if any(record.computed == kind[0] for record in trace.calls)]


def _measured(trace: Trace, name: str) -> tuple[list[int], list[float]]:
    """Return the calls in which a number was observed and finite, and the number in each."""
    found = [(record.call, record.observation.get(name)) for record in trace.calls]
    known = [(call, number) for call, number in found if number is not None and math.isfinite(number)]
    return [call for call, _ in known], [number for _, number in known]


def _finite(number: float | None) -> bool:
    return number is not None and math.isfinite(number)
