"""Draw the README's plot of quality against speed, with more methods than single points could tell apart."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adacache_tune.comparison.plot import COLOURS, MARKERS
from adacache_tune.comparison.statistics import Estimate

BASELINE = "fixed interval"


@dataclass(frozen=True)
class Point:
    """A policy: measured speed-up over full compute, and PSNR against it in dB."""

    speed_up: Estimate
    psnr_db: Estimate


def plot(path: Path, curves: Mapping[str, Sequence[Point]], calibrated: Collection[str], title: str) -> None:
    """Draw a curve for each method, with 95 % confidence intervals.

    Published settings are dashed, ``calibrated`` ones solid, and the fixed interval is black.
    """
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(10, 5.6), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e8e8e8", linewidth=0.6)
        axes.set_axisbelow(True)
        others = [kind for kind in curves if kind != BASELINE]
        for index, kind in enumerate(others):
            look = (COLOURS[index % (len(COLOURS) - 1)], MARKERS[index % len(MARKERS)])  # without black
            _curve(axes, kind, curves[kind], *look, solid=kind in calibrated)
        _curve(axes, BASELINE, curves[BASELINE], "black", "o", solid=True)
        axes.set_xlabel("measured speed-up over full compute")
        axes.set_ylabel("PSNR against full compute, dB")
        axes.set_title(title, loc="left", fontsize=9)
        figure.legend(loc="outside right upper", frameon=False, fontsize=8.5, handlelength=3.2)
        figure.savefig(path, metadata={"Software": None})


def _curve(axes: Axes, kind: str, points: Sequence[Point], colour: str, marker: str, solid: bool) -> None:
    x, y = [point.speed_up for point in points], [point.psnr_db for point in points]
    axes.errorbar(
        [value.mean for value in x],
        [value.mean for value in y],
        xerr=[value.margin or 0.0 for value in x],
        yerr=[value.margin or 0.0 for value in y],
        color=colour,
        marker=marker,
        markersize=5,
        linestyle="-" if solid else "--",
        linewidth=1.6 if solid else 1.0,
        elinewidth=0.6,
        label=kind,
    )
