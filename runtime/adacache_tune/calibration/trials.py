"""Trials: real runs of policies beside full compute, kept in a file so that each is made once."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from adacache_runtime.caching.policy import Policy
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.settled import settle
from adacache_tune.calibration.forecast import BEST_DB
from adacache_tune.comparison.measure import FULL, Row, compare
from adacache_tune.comparison.statistics import Estimate, estimate
from adacache_tune.comparison.store import Finished, append, latest, resume
from adacache_tune.identity import identity

Advance = Callable[[], None]
Progress = Callable[[int], AbstractContextManager[Advance]]  # of so many steps; 0 = there is nothing to do


@dataclass(frozen=True)
class Trial:
    """The numbers of a policy on some prompts.

    Attributes:
        quality_db: PSNR; where the bundle has no decoder, -20 log10 of the relative L2 error of the latents.
        ssim: mean SSIM; None where the bundle has no decoder.
        speed_up: speed-up over full compute, measured in turn.
        computed: mean number of computed calls.
        calls: number of calls of a generation.
        reuse_share: ratio of the time of a reused call to that of a computed one; 0 where none was reused.
        prompts: number of prompts that were run.
    """

    quality_db: Estimate
    ssim: float | None
    speed_up: float
    computed: float
    calls: int
    reuse_share: float
    prompts: int


def run_trials(
    pipeline: Pipeline,
    requests: Sequence[Request],
    policies: Mapping[str, Policy[Any]],
    folder: Path,
    asked: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Trial]:
    """Run every request under every policy, in turn, but for what the folder holds already.

    Args:
        pipeline: the opened pipeline.
        requests: requests of one prompt each.
        policies: policies by label.
        folder: folder for the numbers.
        asked: settings of each generation, as JSON; numbers of other settings are not used.
        progress: shows the progress of the calls that are left to make.

    Raises:
        AdaCacheError: as :func:`adacache_tune.comparison.measure.compare`.
    """
    head = identity(pipeline.bundle, pipeline.backend.name, policies, asked)
    path = folder / f"runs-{hashlib.sha256(json.dumps(head).encode()).hexdigest()[:12]}.jsonl"
    done = latest(resume(path, head))
    todo = [request for request in requests if (request.prompts[0], request.seed) not in done]
    calls = len(settle(pipeline.bundle, requests[0]).updates)
    to_warm_up = 1 if todo else 0
    with progress(calls * (to_warm_up + len(todo) * (1 + len(policies)))) as advance:
        for compared in compare(pipeline, todo, policies, on_call=lambda _: advance()):
            done[compared.prompt, compared.seed] = append(path, compared, None)
    finished = [done[request.prompts[0], request.seed] for request in requests]
    return {label: _trial(label, finished) for label in policies}


def _trial(label: str, finished: Sequence[Finished]) -> Trial:
    rows = [row for one in finished for row in one.rows if row.policy == label]
    full = [row for one in finished for row in one.rows if row.policy == FULL]
    quality = estimate([[_quality_db(row)] for row in rows])
    assert quality is not None
    similar = [row.ssim for row in rows if row.ssim is not None]
    shares = [_reuse_share(row, whole) for row, whole in zip(rows, full, strict=True) if row.computed < row.calls]
    return Trial(
        quality,
        fmean(similar) if similar else None,
        fmean(row.time_ratio for row in rows),
        fmean(row.computed for row in rows),
        rows[0].calls,
        max(0.0, median(shares)) if shares else 0.0,
        len(rows),
    )


def _quality_db(row: Row) -> float:
    if row.psnr_db is not None:
        return row.psnr_db
    return -20 * math.log10(row.latent_l2) if row.latent_l2 and not row.same else BEST_DB


def _reuse_share(row: Row, full: Row) -> float:
    """Return the share in wall = computed x c + reused x share x c, where c is full compute's time for a call."""
    calls_worth = row.wall_ms / (full.wall_ms / full.calls)
    return (calls_worth - row.computed) / (row.calls - row.computed)
