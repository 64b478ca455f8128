"""Measure several policies on the same noise, call by call in turn.

>>> policies = {"interval-2": PRESETS["interval-2"], "adacache-fast": PRESETS["adacache-fast"]}
>>> for compared in compare(pipeline, [Request(prompts=("a boat",), seed=seed) for seed in range(4)], policies):
...     print(compared.seed, [(row.policy, row.psnr_db, row.time_ratio) for row in compared.rows])
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import InputError
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.caching.policy import Policy
from adacache_runtime.events import Denoised
from adacache_runtime.media.video import Frames
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.reports.flops import work_of_run
from adacache_runtime.request import Request
from adacache_runtime.trace import CallRecord
from adacache_runtime.vae.chunks import video_frames
from adacache_runtime.vae.decode import render
from adacache_tune.comparison.quality import relative_l2, similarity
from adacache_tune.comparison.score import Score

FULL = "never"  # the label of full compute, which is always the first row

OnCall = Callable[[CallRecord], None]


@dataclass(frozen=True)
class Row:
    """The numbers of one video under one policy.

    Attributes:
        policy: label of the policy.
        calls, computed: number of calls, and of those in which a block ran in full.
        passes: evaluations of the model in the computed calls; a guided call evaluates it once for each branch.
        flops: floating-point operations; None where the bundle's stages do not count them.
        wall_ms: time of all calls together.
        time_ratio: ratio of full compute's time to this time.
        same: whether every pixel is full compute's; None where the bundle has no decoder.
        psnr_db: PSNR in dB; None where the videos are the same, or there is no decoder.
        ssim: mean SSIM over frames; None where there is no decoder.
        lpips: mean LPIPS over frames; None where it was not asked for.
        latent_l2: ||z - z_full|| / ||z_full|| of the final latents.
        adherence: how far the video shows each thing that the prompt asks for; empty where it was not scored.
    """

    policy: str
    calls: int
    computed: int
    passes: int
    flops: int | None
    wall_ms: float
    time_ratio: float
    same: bool | None
    psnr_db: float | None
    ssim: float | None
    lpips: float | None
    latent_l2: float
    adherence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Compared:
    """The videos and numbers of one prompt and seed under all policies.

    Attributes:
        prompt: text of the prompt; empty where the request has embeddings instead.
        seed: seed of the noise.
        rows: numbers of each policy, full compute's first.
        frames: videos by label, (frames, height, width, 3) RGB; empty where the bundle has no decoder.
    """

    prompt: str
    seed: int
    rows: tuple[Row, ...]
    frames: Mapping[str, Frames]


@dataclass(frozen=True)
class Yardsticks:
    """Optional measurements besides PSNR, SSIM and the error of latents.

    Attributes:
        lpips: perceptual distance of two videos (frames, height, width, 3).
        score: adherence of final latents (channels, frames, height, width) to their prompt.
    """

    lpips: Callable[[Frames, Frames], float] | None = None
    score: Score | None = None


def run_in_turn(
    pipeline: Pipeline, requests: Sequence[Request], on_call: OnCall = lambda _: None, first: int = 0
) -> list[Denoised]:
    """Run generations call by call in turn, so that a machine that slows down does so for all of them.

    Args:
        pipeline: the pipeline that runs them; the buffers of all are in memory at once.
        requests: one request for each generation.
        on_call: called with the record of each call as it becomes known.
        first: index of the request whose turn comes first, modulo their number.

    Returns:
        The results, in the order of the requests.

    Raises:
        AdaCacheError: as :meth:`Pipeline.generate`.
    """
    results: dict[int, Denoised] = {}
    with ExitStack() as stack:
        turn = [index % len(requests) for index in range(first, first + len(requests))]
        running = {index: stack.enter_context(closing(pipeline.calls(requests[index]))) for index in turn}
        while running:
            for index, calls in list(running.items()):
                got = _advance(calls)
                if isinstance(got, Denoised):
                    results[index] = got
                    del running[index]
                else:
                    on_call(got)
    return [results[index] for index in range(len(requests))]


def _advance(calls: Generator[CallRecord, None, Denoised]) -> CallRecord | Denoised:
    try:
        return next(calls)
    except StopIteration as end:
        result: Denoised = end.value
        return result


def compare(
    pipeline: Pipeline,
    requests: Sequence[Request],
    policies: Mapping[str, Policy[Any]],
    yardsticks: Yardsticks = Yardsticks(),
    warm_up: bool = True,
    on_call: OnCall = lambda _: None,
) -> Iterator[Compared]:
    """Run each request without reuse and under every policy, in turn; the first in turn rotates between requests.

    Args:
        pipeline: the pipeline that runs all of them.
        requests: requests of one prompt each; their own policies are not used.
        policies: policies by label.
        yardsticks: optional measurements to make.
        warm_up: whether to begin with a generation that is not counted.
        on_call: as in :func:`run_in_turn`; called for the calls of the warm-up, too.

    Yields:
        The numbers of each request, and its videos.

    Raises:
        InputError: a request has several prompts, or a policy is labelled as full compute is.
        AdaCacheError: as :meth:`Pipeline.generate`, :func:`similarity` and the yardsticks.
    """
    if FULL in policies:
        raise InputError(f"{FULL!r} is the label of full compute, which is always compared; name the policy otherwise")
    for request in requests:
        prompts = len(request.prompts) if request.captions is None else len(request.captions.mask)
        if prompts != 1:
            raise InputError(f"a request of {prompts} prompts cannot be compared; give one prompt a request")
    all_policies: dict[str, Policy[Any]] = {FULL: NeverReuse(), **policies}
    if warm_up and requests:
        pipeline.generate(replace(requests[0], policy=all_policies[FULL]), on_call)
    for index, request in enumerate(requests):
        runs = [replace(request, policy=policy) for policy in all_policies.values()]
        results = dict(zip(all_policies, run_in_turn(pipeline, runs, on_call, index), strict=True))
        yield _compared(pipeline, request, results, yardsticks)


def _compared(
    pipeline: Pipeline, request: Request, results: Mapping[str, Denoised], yardsticks: Yardsticks
) -> Compared:
    latents: dict[str, NDArray[np.float32]] = {label: result.latents[0] for label, result in results.items()}
    frames = {}
    if pipeline.bundle.manifest.latent.decoder != "none":
        space, asked = pipeline.bundle.manifest.latent, request.frames or pipeline.bundle.manifest.video.frames
        count = video_frames(space, latents[FULL].shape[1], asked)
        frames = {label: render(pipeline.bundle, pipeline.backend, one, count) for label, one in latents.items()}
    prompt = request.prompts[0] if request.prompts else ""
    rows = [
        Row(
            policy=label,
            **_cost(pipeline, result),
            time_ratio=results[FULL].trace.wall_ms() / result.trace.wall_ms(),
            **_pixels(frames[FULL], frames[label], yardsticks) if frames else _NO_PIXELS,
            latent_l2=relative_l2(latents[FULL], latents[label]),
            adherence=yardsticks.score(latents[label], prompt) if yardsticks.score else {},
        )
        for label, result in results.items()
    ]
    return Compared(prompt, request.seed, tuple(rows), frames)


def _cost(pipeline: Pipeline, result: Denoised) -> dict[str, Any]:
    trace, manifest = result.trace, pipeline.bundle.manifest
    computed = len(trace.computed())
    counted = work_of_run(manifest, trace)
    return {
        "calls": len(trace.calls),
        "computed": computed,
        "passes": computed * len(manifest.guidance.order),
        "flops": counted[0] if counted else None,
        "wall_ms": trace.wall_ms(),
    }


_NO_PIXELS: Mapping[str, Any] = {"same": None, "psnr_db": None, "ssim": None, "lpips": None}


def _pixels(full: Frames, frames: Frames, yardsticks: Yardsticks) -> Mapping[str, Any]:
    psnr_db, ssim = similarity(full, frames)
    same = bool(np.isinf(psnr_db))
    lpips = yardsticks.lpips(full, frames) if yardsticks.lpips else None
    return {"same": same, "psnr_db": None if same else psnr_db, "ssim": ssim, "lpips": lpips}
