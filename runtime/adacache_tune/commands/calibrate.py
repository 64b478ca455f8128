"""``adacache-calibrate``: set caching policies for a model and write them into its bundle."""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from adacache_engines.bundle.locks import check_changeable
from adacache_engines.bundle.manifest import Manifest
from adacache_engines.errors import InputError, require
from adacache_runtime.commands.destinations import check_apart
from adacache_runtime.commands.options import add_opening, add_video, opening_from, video_size
from adacache_runtime.commands.process import Check, run
from adacache_runtime.commands.progress import even_progress
from adacache_runtime.commands.ranges import check_ranges
from adacache_runtime.commands.version import add_version
from adacache_runtime.conditioning.given_frames import check_images
from adacache_runtime.media.files import check_writable
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.settled import Settled, settle
from adacache_runtime.vae.decode import WITHOUT_DECODER
from adacache_tune.calibration.folder import SETTINGS, begin
from adacache_tune.calibration.goal import Goal
from adacache_tune.calibration.methods import EXTRAPOLATED, METHODS, MOTION, NEEDS, polynomials
from adacache_tune.calibration.process import SEARCHING, Task, calibrate
from adacache_tune.calibration.results import presets, table, write_presets, write_report
from adacache_tune.calibration.trials import Advance
from adacache_tune.commands.tables import show
from adacache_tune.comparison.quality import check_ssim
from adacache_tune.identity import digest_of, identity
from adacache_tune.prompts import read_prompts

ALL = (*METHODS, *(f"{method}{EXTRAPOLATED}" for method in METHODS))
EVERY = 3  # of the prompts, one is held out
FEWEST = 2  # prompts to record, and to confirm on: fewer tell nothing of how prompts differ
FEWEST_CALLS = 3  # with fewer there is hardly a choice
RANGES = {
    "target_speedup": (1.01, 1000),
    "target_psnr": (1, 1000),
    "confirm": (1, 1000),
    "gaps": (1, 1000),
    "tries": (0, 10**6),
}
NAME = re.compile(r"\w([\w.-]*\w)?")  # of a preset: + has a meaning where policies are named


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 for an error, 2 for wrong usage, 130 or 143 when stopped."""
    return run("adacache-calibrate", lambda: _parser().parse_args(arguments), _run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "adacache-calibrate",
        description="Records fully computed generations, searches policies' parameters on them, confirms the best by "
        "real runs on prompts that were not recorded, and writes them into the bundle as presets. A calibration that "
        "was stopped goes on where it was when the command is given again.",
    )
    add_version(parser)
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that adacache-export made")
    what = parser.add_argument_group("what to reach").add_argument
    goal = parser.add_mutually_exclusive_group(required=True).add_argument
    goal("--target-psnr", type=float, metavar="DB", help="against full compute; the fastest policy that keeps it")
    goal("--target-speedup", type=float, metavar="X", help="over full compute; the most faithful policy that gives it")
    what("--prompts", required=True, type=Path, metavar="FILE", help="a prompt a line; # begins a remark")
    what("--held-out", type=Path, metavar="FILE", help="prompts to confirm on (default: every third of the prompts)")
    what(
        "--methods",
        nargs="+",
        choices=ALL,
        metavar="METHOD",
        help=f"of {', '.join(METHODS)}, each also with {EXTRAPOLATED} (default: all that the bundle has probes for)",
    )
    what("--name", default="calibrated", help="of the preset; each method's is NAME-METHOD (default: calibrated)")
    add_video(parser)
    work = parser.add_argument_group("how much work").add_argument
    work("--seed", type=int, default=0, help="of the first prompt's noise; others follow (default: 0)")
    work("--confirm", type=int, default=4, metavar="N", help="methods that are run on held-out prompts (default: 4)")
    work("--gaps", type=int, default=10, metavar="G", help="calls that a reuse is recorded over (default: 10)")
    work("--tries", type=int, default=500, metavar="N", help="random changes of what is searched (default: 500)")
    output = parser.add_argument_group("output").add_argument
    output("-o", "--output", type=Path, metavar="DIR", help="of records and runs (default: BUNDLE-calibration)")
    output("--force", action="store_true", help="begin anew where the folder holds another calibration")
    add_opening(parser)
    return parser


def _run(options: argparse.Namespace, interrupted: Check) -> None:
    require("skimage", "compare")
    recorded, held_out = _split(options)
    with Pipeline.open(options.bundle, **opening_from(options)) as pipeline:
        task = _task(options, pipeline, recorded, held_out, interrupted)
        calibrated = calibrate(task)
    found = presets(options.name, task, calibrated.policies)
    report = _report(options, task.folder)
    write_report(report, task, calibrated)
    write_presets(options.bundle, found, _say)
    show(table(calibrated))
    print(f"{options.bundle}: presets {', '.join(found)}")
    print(report)


def _split(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the prompts to record and the prompts to confirm on."""
    prompts = read_prompts(options.prompts)
    if options.held_out:
        held_out = read_prompts(options.held_out)
        both = [prompt for prompt in prompts if prompt in held_out]
        if both:
            raise InputError(f"{options.held_out} has prompts of {options.prompts}, such as {both[0]!r}; take them out")
    else:
        held_out = prompts[EVERY - 1 :: EVERY]
        prompts = [prompt for prompt in prompts if prompt not in held_out]
    if min(len(prompts), len(held_out)) < FEWEST:
        needed = f"{FEWEST} of each" if options.held_out else f"{FEWEST * EVERY} prompts"
        raise InputError(
            f"{len(prompts)} to record and {len(held_out)} to confirm on are too few prompts; give at least {needed}, "
            "better 20, of the kind that the bundle will serve"
        )
    return prompts, held_out


def _task(
    options: argparse.Namespace,
    pipeline: Pipeline,
    recorded: Sequence[str],
    held_out: Sequence[str],
    interrupted: Check,
) -> Task:
    """Return the calibration that the command line asks for, checked before anything is written."""
    _check(options, pipeline.bundle.manifest)
    check_changeable(options.bundle)
    size = video_size(options, pipeline.bundle.manifest)

    def requests(prompts: Sequence[str], first: int) -> list[Request]:
        return [
            Request(
                **size,
                steps=options.steps,
                guidance=options.guidance,
                guidance_2=options.guidance_2,
                images=tuple(options.image),
                prompts=(prompt,),
                seed=seed,
            )
            for seed, prompt in enumerate(prompts, first)
        ]

    to_record, to_confirm = requests(recorded, options.seed), requests(held_out, options.seed + len(recorded))
    check_images(pipeline.bundle.manifest, to_record[0])
    settle(pipeline.bundle, to_confirm[-1])  # the largest seed
    settled = settle(pipeline.bundle, to_record[0])
    if len(settled.updates) < FEWEST_CALLS:
        raise InputError(
            f"{len(settled.updates)} calls of the model are too few to choose from; choose more --steps, for at least "
            f"{FEWEST_CALLS} calls"
        )
    latent = pipeline.bundle.manifest.latent
    if latent.decoder != "none":
        check_ssim(*(side * latent.spatial_factor for side in settled.latent_shape[3:]))
    asked = {
        "size": f"{settled.width}x{settled.height}",
        "frames": settled.frames,
        "steps": settled.steps,
        **settled.guidance_scales(),
        "threads": options.threads,
        "image": digest_of(options.image),
    }
    methods = _methods(options, pipeline.bundle.manifest, settled)
    folder = options.output or Path(f"{options.bundle.resolve().stem}-calibration")
    _check_outputs(options, folder)
    lists = {"prompts": list(recorded), "held_out": list(held_out), "seed": options.seed, "gaps": options.gaps}
    begin(folder, identity(pipeline.bundle, pipeline.backend.name, {}, {**asked, **lists}), options.force)
    check_writable(_report(options, folder))  # at the end there would be a calibration to lose
    return Task(
        pipeline=pipeline,
        recorded=to_record,
        held_out=to_confirm,
        goal=Goal(quality_db=options.target_psnr, speed_up=options.target_speedup),
        methods=methods,
        polynomials=polynomials(pipeline.bundle.manifest.policies),
        confirmed=options.confirm,
        gaps=options.gaps,
        tries=options.tries,
        folder=folder,
        asked=asked,
        progress=partial(_progress, interrupted),
        say=_say,
    )


def _report(options: argparse.Namespace, folder: Path) -> Path:
    return folder / f"{options.name}.json"


def _check_outputs(options: argparse.Namespace, folder: Path) -> None:
    """Check that nothing that is written is read, or in the bundle, whose manifest alone is changed."""
    outputs = [("--name", _report(options, folder)), ("-o", folder / SETTINGS), ("-o", folder)]
    read = [("--prompts", options.prompts), ("--held-out", options.held_out)]
    read += [("--image", path) for path in options.image]
    check_apart([*outputs, ("--embedding-cache", options.embedding_cache)], read, [options.bundle])


def _check(options: argparse.Namespace, manifest: Manifest) -> None:
    if options.target_psnr is not None and manifest.latent.decoder == "none":
        raise InputError(
            f"--target-psnr needs pixels, and this bundle has no decoder; {WITHOUT_DECODER}, or give --target-speedup"
        )
    check_ranges(options, RANGES)
    if not NAME.fullmatch(options.name):
        raise InputError(f"--name {options.name!r} is not possible; choose letters, digits, and . _ - between them")


def _methods(options: argparse.Namespace, manifest: Manifest, settled: Settled) -> list[str]:
    """Return the methods that were named, or all that are possible here."""
    kept = []
    for method in dict.fromkeys(options.methods or ALL):
        problem = _problem(method.removesuffix(EXTRAPOLATED), manifest, settled)
        if problem is None:
            kept.append(method)
        elif options.methods:
            raise InputError(f"{method} {problem}, or leave it out of --methods")
        else:
            _say(f"without {method}: it {problem}")
    return kept


def _problem(method: str, manifest: Manifest, settled: Settled) -> str | None:
    """Return why a method is not possible, and what to do; None where it is possible."""
    role = NEEDS.get(method)
    if role is not None and not manifest.sites(role):
        return f"measures {role}, which this bundle has no probe for; export with --probe {role}"
    if method == MOTION and settled.latent_shape[2] < 2:
        return "goes by motion, and an image has none; choose more --frames"
    return None


@contextmanager
def _progress(interrupted: Check, what: str, steps: int) -> Iterator[Advance]:
    if not steps:
        yield lambda: None
        return
    _say(what)
    with even_progress("method" if what.startswith(SEARCHING) else "call", steps) as advance:

        def advanced() -> None:
            interrupted()
            advance()

        yield advanced


def _say(text: str) -> None:
    print(f"adacache-calibrate: {text}", file=sys.stderr, flush=True)
