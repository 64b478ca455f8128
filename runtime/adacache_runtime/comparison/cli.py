"""``adacache-compare``: what policies save and what they cost in quality, against full compute with the same noise."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from adacache_engines.backends import BACKENDS, ONNXRUNTIME
from adacache_engines.bundle import sha256_file
from adacache_engines.errors import InputError, require
from adacache_engines.ort import PROVIDERS
from adacache_runtime.command import run, size
from adacache_runtime.comparison import store
from adacache_runtime.comparison.inputs import header, named_policies, read_prompts, seed_range
from adacache_runtime.comparison.measure import FULL, Compared, Yardsticks, compare
from adacache_runtime.comparison.plot import kind_of, plot_frontier
from adacache_runtime.comparison.progress import comparison_progress
from adacache_runtime.comparison.quality import Lpips, check_lpips, check_ssim
from adacache_runtime.comparison.score import score_from
from adacache_runtime.comparison.side_by_side import largest_zoom, usual_zoom, write_side_by_side
from adacache_runtime.comparison.summary import totals
from adacache_runtime.comparison.tables import table, to_csv, to_json
from adacache_runtime.decode import without_decoder
from adacache_runtime.files import writing
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.policies import PRESETS
from adacache_runtime.policy import Policy
from adacache_runtime.request import Request, Settled, settle

RUNS, VIDEOS = "runs.jsonl", "videos"
OUTPUTS = ("comparison.json", "comparison.csv", "frontier.png")
WIDTH = 140  # of the table, where no terminal says how wide it is


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 for an error, 2 for wrong usage, 130 or 143 when stopped."""
    options = _parser().parse_args(arguments)
    return run("adacache-compare", lambda _: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "adacache-compare",
        description="Compares policies with full compute: quality, calls, operations, and time measured in turn. A "
        "comparison that was stopped goes on where it was when the command is given again.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that adacache-export made")
    what = parser.add_argument_group("what to compare").add_argument
    what("--prompts", required=True, type=Path, metavar="FILE", help="a prompt a line; # begins a remark")
    what(
        "--policies",
        required=True,
        nargs="+",
        metavar="POLICY",
        help=f"JSON files, or presets: {', '.join(name for name in PRESETS if name != FULL)}, and the bundle's own",
    )
    what("--seeds", nargs="+", type=seed_range, default=[[0]], metavar="S", help="of the noise: 0 or 0-3 (default: 0)")
    what("--negative-prompt", metavar="TEXT", help="for a model that takes it (default: empty)")
    video = parser.add_argument_group("video and sampling").add_argument
    video("--size", type=size, metavar="HxW", help="pixels (default: the bundle's)")
    video("--frames", type=int, metavar="F", help="1 = an image (default: the bundle's)")
    video("--steps", type=int, help="(default: the bundle's)")
    video("--guidance", type=float, help="(default: the bundle's)")
    measured = parser.add_argument_group("what to measure besides").add_argument
    measured("--lpips", type=Path, metavar="FILE.onnx", help="LPIPS, by a model that tools/lpips_onnx.py made")
    measured(
        "--score",
        metavar="MODULE:FUNCTION",
        help="adherence: a function of final latents (channels, frames, height, width) and the prompt that gives a "
        "mapping of names to booleans or numbers",
    )
    output = parser.add_argument_group("output").add_argument
    output("-o", "--output", type=Path, metavar="DIR", help="folder (default: the bundle's name with -comparison)")
    output("--videos", type=int, default=3, metavar="N", help="side by side, of the first N prompts (default: 3)")
    output("--zoom", type=int, help="of them: side of the square that a pixel becomes (default: large enough to read)")
    output("--force", action="store_true", help="begin anew where the folder holds another comparison")
    engine = parser.add_argument_group("engine").add_argument
    engine("--backend", choices=BACKENDS, default=ONNXRUNTIME, help="(default: onnxruntime)")
    engine("--provider", choices=tuple(PROVIDERS), default="cpu", help="of ONNX Runtime (default: cpu)")
    engine("--threads", type=int, default=0, help="of ONNX Runtime (default: one a core)")
    return parser


@dataclass(frozen=True)
class _Plan:
    """What is to be done, checked."""

    folder: Path
    requests: Sequence[Request]
    policies: Mapping[str, Policy[Any]]
    yardsticks: Yardsticks
    header: Mapping[str, Any]
    videos: Mapping[tuple[str, int], str]  # prompt and seed -> file, relative to the folder
    zoom: int
    settled: Settled


def _run(options: argparse.Namespace) -> None:
    for module in ("matplotlib", "PIL", "skimage"):
        require(module, "compare")
    prompts = read_prompts(options.prompts)
    pipeline = Pipeline.open(options.bundle, options.backend, options.provider, options.threads)
    with closing(pipeline.backend):
        plan = _plan(options, pipeline, prompts)
        finished = _compare(options, pipeline, plan)
    _write(options, plan, finished)


def _plan(options: argparse.Namespace, pipeline: Pipeline, prompts: Sequence[str]) -> _Plan:
    """
    Raises:
        AdaCacheError: something that was asked for is not possible; nothing has been written then.
    """
    if options.videos < 0:
        raise InputError(f"--videos {options.videos} is not possible; choose at least 0")
    manifest = pipeline.bundle.manifest
    policies = named_policies(options.policies, manifest.policies)
    seeds = list(dict.fromkeys(seed for seeds in options.seeds for seed in seeds))
    usual = Request(
        height=options.size[0] if options.size else None,
        width=options.size[1] if options.size else None,
        frames=options.frames,
        steps=options.steps,
        guidance=options.guidance,
        prompts=(prompts[0],),
        negative_prompts=() if options.negative_prompt is None else (options.negative_prompt,),
    )
    for policy in policies.values():
        settle(pipeline.bundle, replace(usual, policy=policy, seed=max(seeds)))  # refuses if it must
    settled = settle(pipeline.bundle, usual)
    asked = {
        "size": f"{settled.height}x{settled.width}",
        "frames": settled.frames,
        "steps": settled.steps,
        "guidance": settled.guidance,
        "negative_prompt": options.negative_prompt,
        "threads": options.threads,
        "lpips": sha256_file(options.lpips) if options.lpips and options.lpips.is_file() else None,
        "score": options.score,
    }
    decodes = manifest.latent.decoder != "none"
    if not decodes:
        _say(f"this bundle has no decoder, so no PSNR, SSIM and videos; {without_decoder(manifest.latent)}")
    pixels = tuple(side * manifest.latent.spatial_factor for side in settled.latents.shape[3:])
    lpips = _lpips(options, pixels, decodes)
    shown = prompts[: options.videos] if decodes else []
    return _Plan(
        folder=options.output or Path(f"{options.bundle.resolve().stem}-comparison"),
        requests=[replace(usual, prompts=(prompt,), seed=seed) for prompt in prompts for seed in seeds],
        policies=policies,
        yardsticks=Yardsticks(lpips, score_from(options.score) if options.score else None),
        header=header(pipeline.bundle, pipeline.backend.name, policies, asked),
        videos={(prompt, seeds[0]): f"{VIDEOS}/{index:03}.mp4" for index, prompt in enumerate(shown, 1)},
        zoom=_zoom(options.zoom, pixels, 1 + len(policies)) if shown else 1,
        settled=settled,
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
    check_lpips(lpips, *pixels)
    return lpips


def _zoom(asked: int | None, pixels: tuple[int, ...], panels: int) -> int:
    largest = largest_zoom(pixels[0], pixels[1], panels)
    if largest < 1 or (asked is not None and not 1 <= asked <= largest):
        raise InputError(
            f"{panels} videos of {pixels[0]}x{pixels[1]} pixels side by side with --zoom {asked or 1}: a video may "
            f"have no side above 16384 pixels; choose 1 to {largest}, or --videos 0"
        )
    return asked or min(usual_zoom(pixels[1]), largest)


def _compare(options: argparse.Namespace, pipeline: Pipeline, plan: _Plan) -> list[store.Finished]:
    """Measures what is not in the folder yet; returns all, in the order of the prompts and seeds."""
    runs = plan.folder / RUNS
    _begin(plan, runs, options.force)
    done = store.latest(store.resume(runs, plan.header))
    todo = [request for request in plan.requests if not _is_done(plan, done.get(_key(request)), _key(request))]
    if todo and len(todo) < len(plan.requests):
        _say(f"going on: {len(plan.requests) - len(todo)} of {len(plan.requests)} generations are in {runs}")
    if todo:
        calls = len(plan.settled.updates) * (1 + len(todo) * (1 + len(plan.policies)))
        with comparison_progress(calls) as advance:
            for one in compare(pipeline, todo, plan.policies, plan.yardsticks, on_call=lambda _: advance()):
                video = plan.videos.get((one.prompt, one.seed))
                if video:
                    _write_video(plan, one, plan.folder / video)
                done[one.prompt, one.seed] = store.append(runs, one, video)
    return [done[_key(request)] for request in plan.requests]


def _begin(plan: _Plan, runs: Path, force: bool) -> None:
    """Has the folder there, and with ``force`` without what another comparison left."""
    try:
        plan.folder.mkdir(exist_ok=True)
        if plan.videos:
            (plan.folder / VIDEOS).mkdir(exist_ok=True)
        if force:
            for path in (runs, *(plan.folder / name for name in OUTPUTS), *(plan.folder / VIDEOS).glob("[0-9]*.mp4")):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{plan.folder} cannot be written: {error.strerror or error}; choose another -o") from error


def _key(request: Request) -> tuple[str, int]:
    return request.prompts[0], request.seed


def _is_done(plan: _Plan, finished: store.Finished | None, key: tuple[str, int]) -> bool:
    """Measured, and its video there if one is wanted."""
    if finished is None:
        return False
    wanted = plan.videos.get(key)
    return wanted is None or (finished.video == wanted and (plan.folder / wanted).is_file())


def _write_video(plan: _Plan, one: Compared, path: Path) -> None:
    write_side_by_side(path, one.frames, one.rows, plan.zoom, float(plan.settled.fps[0]))


def _write(options: argparse.Namespace, plan: _Plan, finished: Sequence[store.Finished]) -> None:
    all_totals = totals(finished)
    json_path, csv_path, plot_path = (plan.folder / name for name in OUTPUTS)
    for path, text in ((json_path, to_json(plan.header, finished)), (csv_path, to_csv(finished))):
        with writing(path) as file:
            file.write(text.encode())
    kinds = {label: kind_of(described) for label, described in plan.header["policies"].items()}
    count = len({one.prompt for one in finished})
    title = f"{options.bundle.resolve().name}: {count} prompts, {len(finished) // count} seeds"
    plot_frontier(plot_path, all_totals, kinds, title)
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table(all_totals))
    videos = [plan.folder / one.video for one in finished if one.video]
    for path in (json_path, csv_path, plot_path, *videos):
        print(path)


def _say(text: str) -> None:
    print(f"adacache-compare: {text}", file=sys.stderr)
