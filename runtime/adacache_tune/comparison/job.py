"""Check what a comparison asks for before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adacache_engines.bundle.files import sha256_file
from adacache_engines.errors import InputError
from adacache_runtime.caching.policy import Policy
from adacache_runtime.conditioning.given_frames import check_images
from adacache_runtime.media.video import MAX_SIDE
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.settled import Settled, settle
from adacache_runtime.vae.decode import WITHOUT_DECODER
from adacache_tune.comparison.measure import Yardsticks
from adacache_tune.comparison.named_policies import named_policies
from adacache_tune.comparison.quality import Lpips, check_ssim
from adacache_tune.comparison.score import score_from
from adacache_tune.comparison.side_by_side import largest_zoom, usual_zoom
from adacache_tune.identity import digest_of, identity

RUNS, VIDEOS = "runs.jsonl", "videos"


@dataclass(frozen=True)
class Asked:
    """A comparison as it is asked for, not checked yet.

    Attributes:
        prompts: different prompts.
        seeds: seeds of the noise, for each prompt.
        policies: names or files of policies.
        request: size, sampling, image and negative prompt of each generation.
        threads: number of processor threads of the backend; None = the backend's default.
        folder: folder for everything that is written.
        lpips: file of an LPIPS model; None = LPIPS is not measured.
        score: ``MODULE:FUNCTION`` that scores adherence; None = it is not measured.
        videos: number of prompts whose videos are written side by side.
        zoom: side of the square that a pixel becomes in them; None = large enough to read the captions.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    policies: Sequence[str]
    request: Request
    threads: int | None
    folder: Path
    lpips: Path | None = None
    score: str | None = None
    videos: int = 0
    zoom: int | None = None


@dataclass(frozen=True)
class Job:
    """A checked comparison.

    Attributes:
        folder: folder for everything that is written.
        requests: one request for each prompt and seed.
        policies: policies by label.
        yardsticks: optional measurements.
        header: description of the comparison, as JSON.
        videos: files of videos by prompt and seed, relative to the folder.
        zoom: side of the square that a pixel becomes in the videos.
        settled: the first request with all its numbers.
        notes: remarks for people.
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


def settle_job(asked: Asked, pipeline: Pipeline) -> Job:
    """Check what is asked for, with everything that can be known before the first run.

    Raises:
        AdaCacheError: something that was asked for is not possible; nothing has been written then.
    """
    manifest = pipeline.bundle.manifest
    policies = named_policies(asked.policies, manifest.policies)
    seeds = list(dict.fromkeys(asked.seeds))
    usual = replace(asked.request, prompts=(asked.prompts[0],))
    check_images(manifest, usual)
    for policy in policies.values():
        settle(pipeline.bundle, replace(usual, policy=policy, seed=max(seeds)))  # refuses if it must
    settled = settle(pipeline.bundle, usual)
    settings = {
        "size": f"{settled.width}x{settled.height}",
        "frames": settled.frames,
        "steps": settled.steps,
        **settled.guidance_scales(),
        "negative_prompt": next(iter(usual.negative_prompts), None),
        "image": digest_of(usual.images),
        "threads": asked.threads,
        "lpips": sha256_file(asked.lpips) if asked.lpips and asked.lpips.is_file() else None,
        "score": asked.score,
    }
    decodes = manifest.latent.decoder != "none"
    missing = f"this bundle has no decoder, so no PSNR, SSIM and videos; {WITHOUT_DECODER}"
    pixels = tuple(side * manifest.latent.spatial_factor for side in settled.latent_shape[3:])
    lpips = _lpips(asked.lpips, pixels, decodes)
    shown = asked.prompts[: asked.videos] if decodes else []
    return Job(
        folder=asked.folder,
        requests=[replace(usual, prompts=(prompt,), seed=seed) for prompt in asked.prompts for seed in seeds],
        policies=policies,
        yardsticks=Yardsticks(lpips, score_from(asked.score) if asked.score else None),
        header=identity(pipeline.bundle, pipeline.backend.name, policies, settings),
        videos={(prompt, seeds[0]): f"{VIDEOS}/{index:03}.mp4" for index, prompt in enumerate(shown, 1)},
        zoom=_zoom(asked.zoom, pixels, 1 + len(policies)) if shown else 1,
        settled=settled,
        notes=[] if decodes else [missing],
    )


def _lpips(file: Path | None, pixels: tuple[int, ...], decodes: bool) -> Lpips | None:
    """Check whether the measures of pixels are possible, and open LPIPS."""
    if decodes:
        check_ssim(*pixels)
    if file is None:
        return None
    if not decodes:
        raise InputError("--lpips needs pixels, and this bundle has no decoder; leave it out")
    lpips = Lpips(file)
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
