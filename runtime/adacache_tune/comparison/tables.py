"""A comparison as a table for a terminal, as JSON and as CSV.

The JSON's keys stay as they are within ``schema_version``; more may be added. Times are milliseconds.

    schema_version  1
    compared        what was compared and how: the first line of ``runs.jsonl``
    confidence      of the intervals
    totals          a list, a policy each, ``never`` (full compute) first: policy, videos, same (videos that are full
                    compute's, pixel for pixel), metrics (name -> mean, low, high; low and high are null with fewer
                    than two prompts)
    prompts         a list: prompt, totals (a list as above, over the seeds)
    videos          a list, a prompt and seed each: prompt, seed, video (side by side, or null), rows (a policy each)

``psnr_db`` is null where the videos are the same, and its mean is over the others.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from rich.table import Table

from adacache_runtime.reports.flops import UNITS, in_unit
from adacache_tune.comparison.measure import Row
from adacache_tune.comparison.score import adherence
from adacache_tune.comparison.statistics import CONFIDENCE, Estimate
from adacache_tune.comparison.store import Finished
from adacache_tune.comparison.summary import Total, by_prompt, totals

SCHEMA_VERSION = 1


def table(all_totals: Sequence[Total]) -> Table:
    """Return the table, with a row for each policy and cells of mean ± half the interval's width.

    With fewer than two prompts there is ``-`` instead of the width.
    """
    unit, per_unit, digits = _unit(all_totals)
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "computed_calls": ("computed calls", lambda value: f"{value:.1f}"),
        "flops": (unit, lambda value: f"{value / per_unit:.{digits}f}"),
        "time_ratio": ("time ratio", lambda value: f"{value:.2f}"),
        "psnr_db": ("PSNR, dB", lambda value: f"{value:.1f}"),
        "ssim": ("SSIM", lambda value: f"{value:.3f}"),
        "lpips": ("LPIPS", lambda value: f"{value:.3f}"),
        "latent_l2": ("latents, rel. L2", lambda value: f"{value:.3f}"),
        "adherence": ("adherence, %", lambda value: f"{100 * value:.1f}"),
    }
    shown = [name for name in columns if any(name in total.metrics for total in all_totals)]
    if any(total.same is not None for total in all_totals) and "psnr_db" not in shown:
        shown.insert(shown.index("ssim"), "psnr_db")  # all videos are the same
    videos = all_totals[0].videos if all_totals else 0
    made = Table(
        title=f"against full compute, {videos} {'video' if videos == 1 else 'videos'} a policy; ± "
        f"{CONFIDENCE:.0%} confidence",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    made.add_column("policy", no_wrap=True)
    for name in shown:
        made.add_column(columns[name][0], justify="right", no_wrap=True)
    for total in all_totals:
        made.add_row(total.policy, *(_cell(total, name, columns[name][1]) for name in shown))
    return made


def to_json(header: Mapping[str, Any], finished: Sequence[Finished]) -> str:
    """Return all numbers as JSON, with the keys that the module lists."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "compared": dict(header),
        "confidence": CONFIDENCE,
        "totals": [asdict(total) for total in totals(finished)],
        "prompts": [
            {"prompt": prompt, "totals": [asdict(total) for total in some]}
            for prompt, some in by_prompt(finished).items()
        ],
        "videos": [asdict(one) for one in finished],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(finished: Sequence[Finished]) -> str:
    """Return a line for each prompt, seed and policy; ``adherence`` is a mean, and each score has its own column."""
    scored = list(dict.fromkeys(name for one in finished for row in one.rows for name in row.adherence))
    plain = [field.name for field in fields(Row) if field.name not in ("policy", "adherence")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"adherence_{name}" for name in scored]
    writer.writerow(["prompt", "seed", "policy", *plain, *(["adherence", *names] if scored else [])])
    for one in finished:
        for row in one.rows:
            scores = [adherence(row.adherence), *(row.adherence.get(name) for name in scored)] if scored else []
            writer.writerow([one.prompt, one.seed, row.policy, *(getattr(row, name) for name in plain), *scores])
    return text.getvalue()


def _cell(total: Total, name: str, words: Callable[[float], str]) -> str:
    found = total.metrics.get(name)
    if found is None:
        return "same" if name == "psnr_db" and total.same else "-"
    return f"{words(found.mean)} ± {_margin(found, words)}"


def _margin(found: Estimate, words: Callable[[float], str]) -> str:
    return "-" if found.margin is None else words(found.margin)


def _unit(all_totals: Sequence[Total]) -> tuple[str, int, int]:
    """Return the unit of operations that suits the largest mean, how many operations it holds, and decimals."""
    largest = max((round(total.metrics["flops"].mean) for total in all_totals if "flops" in total.metrics), default=0)
    unit = in_unit(largest)[1]
    value = largest / UNITS[unit]
    return f"{unit}s", UNITS[unit], 2 if value < 10 else 1 if value < 1000 else 0
