"""``adacache-run``: a video from a bundle."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from adacache_engines.bundle.files import open_bundle
from adacache_engines.bundle.manifest import TextRule
from adacache_engines.errors import InputError
from adacache_runtime.caching.policy import GRANULARITIES
from adacache_runtime.caching.presets import POLICY_HELP, policy_from
from adacache_runtime.commands.array_files import read_captions, read_latents
from adacache_runtime.commands.options import add_opening, add_size, opening_from, video_size
from adacache_runtime.commands.outputs import check_outputs, output_files, write_latents, write_reports, write_videos
from adacache_runtime.commands.process import run
from adacache_runtime.commands.progress import call_progress
from adacache_runtime.conditioning import given_frames as start
from adacache_runtime.conditioning.clips import generate_clips
from adacache_runtime.conditioning.prompt_loops import prompts_by_loop
from adacache_runtime.memory.estimate import table
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.reports.summary import summary
from adacache_runtime.request import Request, settle
from adacache_runtime.text.cleaning import with_scores
from adacache_runtime.text.device import open_text_backend


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 for an error, 2 for wrong usage, 130 or 143 when stopped."""
    options = _parser().parse_args(arguments)
    return run("adacache-run", lambda _: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("adacache-run", description="Generates a video from a bundle, without PyTorch.")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that adacache-export made")
    text = parser.add_argument_group("text").add_argument
    text(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="repeat it to generate several in one batch; |0|TEXT|8|TEXT changes it at a loop",
    )
    text("--aesthetic", type=float, metavar="SCORE", help="append a score that Open-Sora was trained with, such as 6.5")
    text("--motion", type=float, metavar="SCORE", help="likewise for the amount of motion")
    text("--camera", metavar="MOTION", help="likewise for the camera, such as 'pan right'")
    text(
        "--negative-prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="what to lead away from, one for all prompts or one each, for a model that takes it (default: empty)",
    )
    text(
        "--text-embeddings",
        metavar="FILE.npz",
        type=Path,
        help="instead of prompts: embeddings (n, length, width), optional mask (n, length) and negative (n, length, "
        "width), of the negative prompts",
    )
    group = parser.add_argument_group("video")
    add_size(group)
    video = group.add_argument
    video("--fps", type=float, nargs="+", metavar="f", help="one, or one a prompt (default: the bundle's)")
    video("--seed", type=int, default=0, help="of the initial noise (default: 0)")
    video(
        "--latents",
        metavar="FILE.npz",
        type=Path,
        help="initial noise: latents (n, channels, frames, height, width); optional mask (n, latent frames): 1 = "
        "generate, 0 = keep the frame that is in latents, in between the edit ratio; with it optional noise (steps, n, "
        "channels, frames, height, width), what the sampler would draw at each step",
    )
    start.add_arguments(parser)
    sampling = parser.add_argument_group("sampling and caching").add_argument
    sampling("--steps", type=int, help="(default: the bundle's)")
    sampling("--guidance", type=float, help="(default: the bundle's)")
    sampling("--idle-call", action="store_true", help="PNDM: also make its last call, which changes nothing")
    sampling("--policy", default="never", metavar="POLICY", help=POLICY_HELP)
    sampling("--granularity", choices=GRANULARITIES, help="of cached residuals (default: what the policy asks for)")
    sampling(
        "--scope",
        choices=("batch", "prompt"),
        default="batch",
        help="decide by the whole batch, or by the most cautious prompt (default: batch)",
    )
    output = parser.add_argument_group("output").add_argument
    output(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help=".mp4, .png (one frame) or .npz; several get -1, -2, ...; latents as .npz where the bundle has no decoder"
        "; - = raw RGB frames to standard output",
    )
    output(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="decode larger frames, and encode those that are given, by blended tiles of this side, to save memory "
        "(default: as the VAE asks, or whole)",
    )
    output("--zoom", type=int, default=1, help="side of the square that a pixel becomes (default: 1)")
    output("--save-latents", metavar="FILE.npz", type=Path, help="the final latents")
    output("--save-every-call", action="store_true", help="with --save-latents: also calls, the latents before each")
    output("--trace", metavar="FILE.json", type=Path, help="what happened at each call")
    output("--plot", metavar="FILE.png", type=Path, help="distance, motion, rate and time a step")
    backend = add_opening(parser).add_argument
    backend("--plan-memory", action="store_true", help="print what the run would take, by kind, and stop")
    return parser


def _run(options: argparse.Namespace) -> None:
    opening = opening_from(options)
    bundle = open_bundle(options.bundle)
    request = Request(
        **video_size(options, bundle.manifest, options.fps[0] if options.fps else None),
        prompts=_prompts(options, bundle.manifest.text),
        negative_prompts=tuple(options.negative_prompt),
        captions=read_captions(options.text_embeddings) if options.text_embeddings else None,
        fps=tuple(options.fps) if options.fps else None,
        steps=options.steps,
        guidance=options.guidance,
        seed=options.seed,
        **(read_latents(options.latents) if options.latents else {}),
        policy=policy_from(options.policy, bundle.manifest.policies),
        granularity=options.granularity,
        scope=options.scope,
        keep_calls=options.save_every_call,
        idle_call=options.idle_call,
        tile=options.tile,
    )
    settled = settle(bundle, request)
    begins_with = start.read_start(options, bundle, settled)
    outputs = output_files(options, settled.samples)
    if not options.plan_memory:
        check_outputs(options, outputs, bundle.manifest.latent, settled)
    opened = opening["backend"].open(bundle)
    if (preset := bundle.manifest.policies.get(options.policy.partition("+")[0])) and preset.note:
        print(f"policy {options.policy}: {preset.note}", file=sys.stderr)
    with closing(opened) as backend:
        if begins_with is not None:
            for note in begins_with.notes:
                print(note, file=sys.stderr)
            request = (
                start.begin_on_paper(begins_with, request, settled, bundle)
                if options.plan_memory
                else start.begin(begins_with, request, settled, bundle, backend)
            )
        text_backend = open_text_backend(bundle, opening["backend"], backend, opening["text_device"])
        pipeline = Pipeline(bundle, backend, text_backend=text_backend, embedding_cache=opening["embedding_cache"])
        if options.plan_memory:
            references = [pixels.shape for pixels in begins_with.pixels] if begins_with else []
            plan = pipeline.memory(request, references)
            Console().print(table(plan, backend.device.free_nbytes(), backend.name))
            return
        memory = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in pipeline.residual_nbytes(request).items())
        print(f"memory of cached residuals by granularity: {memory}; chosen: {settled.granularity}", file=sys.stderr)
        clips = [
            replace(request, seed=request.seed + loop, prompts=_prompts(options, bundle.manifest.text, loop))
            for loop in range(options.loops)
        ]
        with call_progress(len(clips) * len(settled.updates)) as progress:
            result = generate_clips(pipeline, clips, progress)
        write_reports(options, result)  # first: there may be no memory to decode in, and the run was long
        if bundle.manifest.latent.decoder == "none":
            write_latents(outputs, result)
        else:
            write_videos(options, outputs, bundle, backend, settled, result)
    Console(stderr=True).print(summary(result.trace, bundle.manifest))


def _prompts(options: argparse.Namespace, rule: TextRule, loop: int = 0) -> tuple[str, ...]:
    """Those of one of the clips that make the video."""
    scores = (options.aesthetic, options.motion, options.camera)
    if rule.cleaning != "open-sora" and any(score is not None for score in scores):
        raise InputError("--aesthetic, --motion and --camera are for models that were trained with them: Open-Sora's")
    return tuple(with_scores(prompts_by_loop(text, loop + 1)[loop], *scores) for text in options.prompt)
