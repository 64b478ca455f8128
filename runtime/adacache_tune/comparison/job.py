"""What the command line asks for, checked before anything runs."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adacache_engines.bundle.files import sha256_file
from adacache_engines.errors import InputError
from adacache_runtime.caching.policy import Policy
from adacache_runtime.commands.options import video_size
from adacache_runtime.media.video import MAX_SIDE
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.settled import Settled, settle
from adacache_runtime.vae.decode import WITHOUT_DECODER
from adacache_tune.comparison.inputs import header, named_policies
from adacache_tune.comparison.measure import Yardsticks
from adacache_tune.comparison.quality import Lpips, check_ssim
from adacache_tune.comparison.score import score_from
from adacache_tune.comparison.side_by_side import largest_zoom, usual_zoom

RUNS, VIDEOS = "runs.jsonl", "videos"


@dataclass(frozen=True)
class Job:
    """A comparison.

    Attributes:
        folder: for all that is written.
        requests: a prompt and seed each.
        policies: label -> policy.
        yardsticks: what is measured besides.
        header: what is compared, and how.
        videos: prompt and seed -> file, relative to the folder.
        zoom: of the videos.
        settled: a request in numbers.
        notes: for people.
    """

    folder: Path
    requests: Sequence[Request]
    policies: Mapping[str, Policy[Any]]
    yardsticks: Yardsticks
    header: Mapping[str, Any]
    videos: Mapping[tuple[str, int], str]
    zoom: int
    settled: Settled
    notes: Sequence[str]


def settle_job(options: argparse.Namespace, pipeline: Pipeline, prompts: Sequence[str]) -> Job:
    """
    Args:
        options: of the command line.
        pipeline: of the bundle that they name.
        prompts: without repetitions.

    Raises:
        AdaCacheError: something that was asked for is not possible; nothing has been written then.
    """
    if options.videos < 0:
        raise InputError(f"--videos {options.videos} is not possible; choose at least 0")
    manifest = pipeline.bundle.manifest
    policies = named_policies(options.policies, manifest.policies)
    seeds = list(dict.fromkeys(seed for seeds in options.seeds for seed in seeds))
    usual = Request(
        **video_size(options, manifest),
        steps=options.steps,
        guidance=options.guidance,
        prompts=(prompts[0],),
        negative_prompts=() if options.negative_prompt is None else (options.negative_prompt,),
    )
    for policy in policies.values():
        settle(pipeline.bundle, replace(usual, policy=policy, seed=max(seeds)))  # refuses if it must
    settled = settle(pipeline.bundle, usual)
    asked = {
        "size": f"{settled.width}x{settled.height}",
        "frames": settled.frames,
        "steps": settled.steps,
        "guidance": settled.guidance,
        "negative_prompt": options.negative_prompt,
        "threads": options.threads,
        "lpips": sha256_file(options.lpips) if options.lpips and options.lpips.is_file() else None,
        "score": options.score,
    }
    decodes = manifest.latent.decoder != "none"
    missing = f"this bundle has no decoder, so no PSNR, SSIM and videos; {WITHOUT_DECODER}"
    pixels = tuple(side * manifest.latent.spatial_factor for side in settled.latent_shape[3:])
    lpips = _lpips(options, pixels, decodes)
    shown = prompts[: options.videos] if decodes else []
    return Job(
        folder=options.output or Path(f"{options.bundle.resolve().stem}-comparison"),
        requests=[replace(usual, prompts=(prompt,), seed=seed) for prompt in prompts for seed in seeds],
        policies=policies,
        yardsticks=Yardsticks(lpips, score_from(options.score) if options.score else None),
        header=header(pipeline.bundle, pipeline.backend.name, policies, asked),
        videos={(prompt, seeds[0]): f"{VIDEOS}/{index:03}.mp4" for index, prompt in enumerate(shown, 1)},
        zoom=_zoom(options.zoom, pixels, 1 + len(policies)) if shown else 1,
        settled=settled,
        notes=[] if decodes else [missing],
    )


def _lpips(options: argparse.Namespace, pixels: tuple[int, ...], decodes: bool) -> Lpips | None:
    """Checks what needs pixels, and opens LPIPS."""
    if decodes:
        check_ssim(*pixels)
    if options.lpips is None:
        return None
    if not decodes:
        raise InputError("--lpips needs pixels, and this bundle has no decoder: leave it out")
    lpips = Lpips(options.lpips)
    lpips.check(*pixels)
    return lpips


def _zoom(asked: int | None, pixels: tuple[int, ...], panels: int) -> int:
    largest = largest_zoom(pixels[0], pixels[1], panels)
    if largest < 1 or (asked is not None and not 1 <= asked <= largest):
        raise InputError(
            f"{panels} videos of {pixels[0]}x{pixels[1]} pixels side by side with --zoom {asked or 1}: a video may "
            f"have no side above {MAX_SIDE} pixels; choose 1 to {largest}, or --videos 0"
        )
    return asked or min(usual_zoom(pixels[1]), largest)
