"""Plot quality against cost, with a curve for each method through its settings."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adacache_engines.errors import require
from adacache_runtime.media.files import writing
from adacache_tune.comparison.labels import place_labels
from adacache_tune.comparison.measure import FULL
from adacache_tune.comparison.statistics import CONFIDENCE, Estimate
from adacache_tune.comparison.summary import Total

# Okabe and Ito's colours, which people with any colour vision tell apart, yellow excepted, which is too pale for lines
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")  # as many as make all pairs with colours different


@dataclass(frozen=True)
class _Quality:
    metric: str
    label: str
    lower_is_better: bool = False


PSNR = _Quality("psnr_db", "PSNR against full compute, dB")
LATENTS = _Quality("latent_l2", "relative L2 error of the latents", lower_is_better=True)
SPEED = ("time_ratio", "measured speed-up")
WORK = ("work_ratio", "full compute's floating-point operations over the policy's")
CALLS = ("computed_calls", "computed calls")  # where no operations were counted


def kind_of(description: object) -> str:
    """Return the method of a policy that is described as JSON: its name, or that of the policy inside wrappers.

    Policies with motion regularisation or extrapolation are methods of their own, and so is any other description.
    """
    if not isinstance(description, Mapping):
        return str(description)
    for value in description.values():
        if isinstance(value, Mapping) and "name" in value:
            return kind_of(value) + (", extrapolated" if description.get("name") == "extrapolate" else "")
    name = str(description.get("name", "policy"))
    return f"{name} + moreg" if description.get("moreg") else name


def plot_frontier(path: Path, totals: Sequence[Total], kinds: Mapping[str, str], title: str) -> None:
    """Draw PSNR against measured speed-up and against operations, with 95 % confidence intervals.

    Without pixels the error of the latents stands in for PSNR. Policies whose videos are all full compute's have no
    PSNR and are named below. The same numbers give the same bytes.

    Args:
        path: the ``.png`` file.
        totals: the totals of each policy.
        kinds: the method whose curve a policy is on, by label.
        title: title of one line.

    Raises:
        InputError: the file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    figures: Any = require("matplotlib.figure", "compare")
    agg: Any = require("matplotlib.backends.backend_agg", "compare")
    quality = PSNR if any(total.same is not None for total in totals) else LATENTS
    costs = (SPEED, WORK) if all("flops" in total.metrics for total in totals) else (SPEED, CALLS)
    if WORK in costs:
        totals = _with_work(totals)
    shown = [total for total in totals if total.policy != FULL and quality.metric in total.metrics]
    figure = figures.Figure(figsize=(13, 6.5), dpi=150, layout="constrained")
    canvas = agg.FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (cost, name) in zip(axes, costs, strict=True):
        _draw(axis, shown, kinds, cost, quality)
        axis.set_xlabel(f"{name} (of {_calls(totals):g})" if (cost, name) == CALLS else name, fontsize=10)
        if (cost, name) == CALLS:
            axis.invert_xaxis()  # the cheaper the further to the right, as beside it
    axes[0].set_ylabel(quality.label, fontsize=10)
    if quality.lower_is_better:
        axes[0].invert_yaxis()
    handles, names = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), frameon=False, fontsize=9)
    figure.suptitle(f"{title}{_remarks(totals, shown)}", x=0.02, ha="left", fontsize=11, parse_math=False)
    canvas.draw()  # settles the layout, which names are placed in
    figure.set_layout_engine("none")
    for axis, (cost, _) in zip(axes, costs, strict=True):
        points = [(t.metrics[cost].mean, t.metrics[quality.metric].mean, t.policy) for t in shown]
        place_labels(axis, points, _taken(shown, kinds, cost, quality))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    with writing(path) as file:
        file.write(picture.getbuffer())


def _draw(axis: Any, shown: Sequence[Total], kinds: Mapping[str, str], cost: str, quality: _Quality) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.margins(0.12)
    axis.tick_params(labelsize=9, labelleft=True)
    for index, (kind, curve) in enumerate(_curves(shown, kinds, cost).items()):
        x = [total.metrics[cost] for total in curve]
        y = [total.metrics[quality.metric] for total in curve]
        axis.errorbar(
            [value.mean for value in x],
            [value.mean for value in y],
            xerr=_bars(x),
            yerr=_bars(y),
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=6,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
            label=kind,
        )


def _curves(shown: Sequence[Total], kinds: Mapping[str, str], cost: str) -> dict[str, list[Total]]:
    """Return the curve of each method, its settings in the order of cost."""
    curves: dict[str, list[Total]] = {}
    for total in shown:
        curves.setdefault(kinds[total.policy], []).append(total)
    return {kind: sorted(curve, key=lambda total: total.metrics[cost].mean) for kind, curve in curves.items()}


def _with_work(totals: Sequence[Total]) -> list[Total]:
    """Return points with the ratio of full compute's operations to each policy's."""
    full = next(total.metrics["flops"].mean for total in totals if total.policy == FULL)

    def ratio(flops: Estimate) -> Estimate:
        low = None if flops.high is None else full / flops.high
        return Estimate(full / flops.mean, low, full / flops.low if flops.low else None)

    return [replace(total, metrics={**total.metrics, "work_ratio": ratio(total.metrics["flops"])}) for total in totals]


def _bars(values: Sequence[Estimate]) -> list[list[float]] | None:
    """Return the lengths of error bars below and above the means."""
    if any(value.low is None or value.high is None for value in values):
        return None
    below = [max(0.0, value.mean - (value.low or 0.0)) for value in values]
    return [below, [max(0.0, (value.high or 0.0) - value.mean) for value in values]]


def _taken(
    shown: Sequence[Total], kinds: Mapping[str, str], cost: str, quality: _Quality
) -> list[list[tuple[float, float]]]:
    """Draw the curves and the bars."""
    lines = [
        [(total.metrics[cost].mean, total.metrics[quality.metric].mean) for total in curve]
        for curve in _curves(shown, kinds, cost).values()
    ]
    for total in shown:
        x, y = total.metrics[cost], total.metrics[quality.metric]
        if x.low is not None and x.high is not None:
            lines.append([(x.low, y.mean), (x.high, y.mean)])
        if y.low is not None and y.high is not None:
            lines.append([(x.mean, y.low), (x.mean, y.high)])
    return lines


def _calls(totals: Sequence[Total]) -> float:
    return next(total.metrics["computed_calls"].mean for total in totals if total.policy == FULL)


def _remarks(totals: Sequence[Total], shown: Sequence[Total]) -> str:
    bars = any(total.metrics["time_ratio"].margin is not None for total in shown)
    same = [total.policy for total in totals if total.policy != FULL and total not in shown]
    remark = f"; bars: {CONFIDENCE:.0%} confidence over prompts" if bars else ""
    return remark + (f"\nthe same pixels as full compute: {', '.join(same)}" if same else "")
