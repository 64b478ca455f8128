"""``adacache-run``: a video from a bundle."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing

from adacache_engines.bundle.files import open_bundle
from adacache_runtime.checking import Checked, check
from adacache_runtime.commands.console import console
from adacache_runtime.commands.memory_table import memory_table
from adacache_runtime.commands.options import opening_from
from adacache_runtime.commands.outputs import check_outputs, output_files, write_latents, write_reports, write_videos
from adacache_runtime.commands.process import Check, run
from adacache_runtime.commands.progress import call_progress
from adacache_runtime.commands.run_options import request_from, run_parser
from adacache_runtime.events import Called, Decoded, Denoised, Event
from adacache_runtime.generation import Prepared
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.reports.summary import summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 for an error, 2 for wrong usage, 130 or 143 when stopped."""
    return run("adacache-run", lambda: run_parser().parse_args(arguments), _run)


def _run(options: argparse.Namespace, interrupted: Check) -> None:
    opening = opening_from(options)
    bundle = open_bundle(options.bundle)
    checked = check(bundle, request_from(options, bundle.manifest))
    outputs = output_files(options, len(checked.video.fps))
    if not options.estimate_memory:
        check_outputs(options, outputs, bundle.manifest.latent, checked.video)
    if (preset := bundle.manifest.policies.get(options.policy.partition("+")[0])) and preset.note:
        print(f"policy {options.policy}: {preset.note}", file=sys.stderr)
    with Pipeline.open(bundle, **opening) as pipeline:
        prepared = pipeline.prepare(checked)
        for note in prepared.notes:
            print(note, file=sys.stderr)
        if options.estimate_memory:
            console().print(memory_table(prepared.memory, pipeline.free_nbytes(), pipeline.backend.name))
            return
        print(_description(checked, options.policy), file=sys.stderr)
        _print_residuals(prepared)
        with closing(prepared.events()) as events:
            denoised = _denoised(events, prepared.calls, interrupted)
            write_reports(options, denoised)  # first: there may be no memory to decode in, and the run was long
            if bundle.manifest.latent.decoder == "none":
                write_latents(options, outputs, denoised)
            elif outputs:
                decoded = (event for event in events if isinstance(event, Decoded))
                write_videos(options, outputs, prepared.video, decoded)
    console(stderr=True).print(summary(denoised.trace, bundle.manifest))


def _description(checked: Checked, policy: str) -> str:
    """Return what a run makes, in one line."""
    video = checked.video
    frames = "an image" if video.frames == 1 else f"{video.frames} frames"
    fps = ", ".join(f"{fps:g}" for fps in dict.fromkeys(video.fps))
    parts = [
        f"{video.width}x{video.height}",
        frames,
        f"{fps} fps",
        f"seed {checked.request.seed}",
        f"policy {policy}",
        f"{checked.calls} calls",
    ]
    videos = len(video.fps)
    return (f"{videos} videos: " if videos > 1 else "") + ", ".join(parts)


def _print_residuals(prepared: Prepared) -> None:
    memory = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in prepared.residual_nbytes().items())
    chosen = prepared.checked.settled.granularity
    print(f"memory of cached residuals by granularity: {memory}; chosen: {chosen}", file=sys.stderr)


def _denoised(events: Iterator[Event], calls: int, interrupted: Check) -> Denoised:
    """Read events until all calls are over, and show how far they are."""
    with call_progress(calls) as progress:
        for event in events:
            interrupted()
            if isinstance(event, Called):
                progress(event.record)
            elif isinstance(event, Denoised):
                return event
    raise AssertionError("a generation ends with its latents")
