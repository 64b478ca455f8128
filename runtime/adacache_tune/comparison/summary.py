"""Totals of a comparison with intervals, over all prompts and for each; tables, JSON and plot are views of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adacache_tune.comparison.measure import Row
from adacache_tune.comparison.score import adherence
from adacache_tune.comparison.statistics import Estimate, estimate
from adacache_tune.comparison.store import Finished

# what is averaged: name -> of a row; None where it has no such number
METRICS: dict[str, Callable[[Row], float | None]] = {
    "computed_calls": lambda row: row.computed,
    "guidance_passes": lambda row: row.passes,
    "flops": lambda row: row.flops,
    "wall_ms": lambda row: row.wall_ms,
    "time_ratio": lambda row: row.time_ratio,
    "psnr_db": lambda row: row.psnr_db,
    "ssim": lambda row: row.ssim,
    "lpips": lambda row: row.lpips,
    "latent_l2": lambda row: row.latent_l2,
    "adherence": lambda row: adherence(row.adherence),
}


@dataclass(frozen=True)
class Total:
    """The numbers of one policy over all prompts and seeds, or over the seeds of one prompt.

    Attributes:
        policy: label of the policy.
        videos: number of videos that were compared.
        same: number of videos that are full compute's, pixel for pixel; None where there is no decoder.
        metrics: mean and interval of each of :data:`METRICS` that was measured, by name.
    """

    policy: str
    videos: int
    same: int | None
    metrics: dict[str, Estimate]


def totals(finished: Sequence[Finished]) -> list[Total]:
    """Return the totals of each policy, full compute's first; intervals are over prompts."""
    return [_total(label, finished) for label in _labels(finished)]


def by_prompt(finished: Sequence[Finished]) -> dict[str, list[Total]]:
    """Return the totals over the seeds of each prompt."""
    return {prompt: totals([one for one in finished if one.prompt == prompt]) for prompt in _prompts(finished)}


def _total(label: str, finished: Sequence[Finished]) -> Total:
    grouped = [
        [row for one in finished if one.prompt == prompt for row in one.rows if row.policy == label]
        for prompt in _prompts(finished)
    ]
    rows = [row for group in grouped for row in group]
    metrics = {}
    for name, value in METRICS.items():
        found = estimate([[number for row in group if (number := value(row)) is not None] for group in grouped])
        if found is not None:
            metrics[name] = found
    decoded = [row.same for row in rows if row.same is not None]
    return Total(label, len(rows), sum(decoded) if decoded else None, metrics)


def _labels(finished: Sequence[Finished]) -> list[str]:
    return list(dict.fromkeys(row.policy for one in finished for row in one.rows))


def _prompts(finished: Sequence[Finished]) -> list[str]:
    return list(dict.fromkeys(one.prompt for one in finished))
