"""``adacache-compare``: measure what policies save and cost in quality, against full compute with the same noise."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adacache_engines.bundle.manifest import Manifest
from adacache_engines.errors import InputError, require
from adacache_runtime.caching.presets import PRESETS, policy_file
from adacache_runtime.commands.destinations import check_apart
from adacache_runtime.commands.options import add_opening, add_video, opening_from, video_size
from adacache_runtime.commands.process import Check, run
from adacache_runtime.commands.progress import even_progress
from adacache_runtime.commands.ranges import check_ranges
from adacache_runtime.commands.version import add_version
from adacache_runtime.media.files import check_writable, writing
from adacache_runtime.media.video import MAX_SIDE
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.trace import CallRecord
from adacache_tune.commands.tables import show
from adacache_tune.comparison import store
from adacache_tune.comparison.job import RUNS, VIDEOS, Asked, Job, settle_job
from adacache_tune.comparison.measure import FULL, Compared, compare
from adacache_tune.comparison.plot import kind_of, plot_frontier
from adacache_tune.comparison.side_by_side import write_side_by_side
from adacache_tune.comparison.summary import totals
from adacache_tune.comparison.tables import table, to_csv, to_json
from adacache_tune.prompts import read_prompts

MOST_SEEDS = 100_000
RANGES = {"videos": (0, 10**6), "zoom": (1, MAX_SIDE)}
OUTPUTS = ("comparison.json", "comparison.csv", "frontier.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 for an error, 2 for wrong usage, 130 or 143 when stopped."""
    return run("adacache-compare", lambda: _parser().parse_args(arguments), _run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "adacache-compare",
        description="Compares policies with full compute: quality, calls, operations, and time measured in turn. A "
        "comparison that was stopped goes on where it was when the command is given again.",
    )
    add_version(parser)
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
    what("--seeds", nargs="+", type=_seeds, default=[[0]], metavar="S", help="of the noise: 0 or 0-3 (default: 0)")
    what("--negative-prompt", metavar="TEXT", help="for a model that takes it (default: empty)")
    add_video(parser)
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
    add_opening(parser)
    return parser


def _run(options: argparse.Namespace, interrupted: Check) -> None:
    for module in ("matplotlib", "skimage"):
        require(module, "compare")
    check_ranges(options, RANGES)
    prompts = read_prompts(options.prompts)
    with Pipeline.open(options.bundle, **opening_from(options)) as pipeline:
        job = settle_job(_asked(options, pipeline.bundle.manifest, prompts), pipeline)
        _check_outputs(options, job)
        for note in job.notes:
            _say(note)
        finished = _compare(options, pipeline, job, interrupted)
    _write(options, job, finished)


def _seeds(text: str) -> list[int]:
    """For ``argparse``: return the seeds that ``3`` or ``0-3`` names."""
    first, separator, last = text.partition("-")
    if not first.isdecimal() or (separator and not last.isdecimal()) or (separator and int(last) < int(first)):
        raise argparse.ArgumentTypeError(f"{text!r} is no seed, such as 3, and no range of seeds, such as 0-3")
    seeds = range(int(first), int(last if separator else first) + 1)
    if seeds.stop - seeds.start > MOST_SEEDS:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} are more seeds than {MOST_SEEDS}; name fewer")
    return list(seeds)


def _asked(options: argparse.Namespace, manifest: Manifest, prompts: Sequence[str]) -> Asked:
    return Asked(
        prompts=prompts,
        seeds=[seed for seeds in options.seeds for seed in seeds],
        policies=options.policies,
        request=Request(
            **video_size(options, manifest),
            steps=options.steps,
            guidance=options.guidance,
            guidance_2=options.guidance_2,
            images=tuple(options.image),
            negative_prompts=() if options.negative_prompt is None else (options.negative_prompt,),
        ),
        threads=options.threads,
        folder=options.output or Path(f"{options.bundle.resolve().stem}-comparison"),
        lpips=options.lpips,
        score=options.score,
        videos=options.videos,
        zoom=options.zoom,
    )


def _compare(options: argparse.Namespace, pipeline: Pipeline, job: Job, interrupted: Check) -> list[store.Finished]:
    """Measure what is not in the folder yet; return all runs, in the order of the prompts and seeds."""
    runs = job.folder / RUNS
    _begin(job, runs, options.force)
    done = store.latest(store.resume(runs, job.header))
    todo = [request for request in job.requests if not _is_done(job, done.get(_key(request)), _key(request))]
    if todo and len(todo) < len(job.requests):
        _say(f"going on: {len(job.requests) - len(todo)} of {len(job.requests)} generations are in {runs}")
    if todo:
        calls = len(job.settled.updates) * (1 + len(todo) * (1 + len(job.policies)))
        with even_progress("call", calls) as advance:

            def called(_: CallRecord) -> None:
                interrupted()
                advance()

            for one in compare(pipeline, todo, job.policies, job.yardsticks, on_call=called):
                video = job.videos.get((one.prompt, one.seed))
                if video:
                    _write_video(job, one, job.folder / video)
                done[one.prompt, one.seed] = store.append(runs, one, video)
    return [done[_key(request)] for request in job.requests]


def _check_outputs(options: argparse.Namespace, job: Job) -> None:
    """Check that nothing that is written is read, or in the bundle; nothing has been written yet."""
    names = (RUNS, *OUTPUTS, *job.videos.values())
    outputs = [("-o", job.folder / name) for name in names]
    read = [("--prompts", options.prompts), ("--lpips", options.lpips), *(("--image", path) for path in options.image)]
    read += [("--policies", policy_file(choice)) for choice in options.policies]
    folders = [("-o", job.folder), ("--embedding-cache", options.embedding_cache)]
    check_apart([*outputs, *folders], read, [options.bundle])


def _begin(job: Job, runs: Path, force: bool) -> None:
    """Make the folder; with ``force``, delete what another comparison left in it."""
    try:
        job.folder.mkdir(exist_ok=True)
        if job.videos:
            (job.folder / VIDEOS).mkdir(exist_ok=True)
        if force:
            for path in (runs, *(job.folder / name for name in OUTPUTS), *(job.folder / VIDEOS).glob("[0-9]*.mp4")):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{job.folder} cannot be written: {error.strerror or error}; choose another -o") from error
    for name in (RUNS, *OUTPUTS, *job.videos.values()):
        check_writable(job.folder / name)


def _key(request: Request) -> tuple[str, int]:
    return request.prompts[0], request.seed


def _is_done(job: Job, finished: store.Finished | None, key: tuple[str, int]) -> bool:
    """Whether a run was measured, and its video exists if one is wanted."""
    if finished is None:
        return False
    wanted = job.videos.get(key)
    return wanted is None or (finished.video == wanted and (job.folder / wanted).is_file())


def _write_video(job: Job, one: Compared, path: Path) -> None:
    write_side_by_side(path, one.frames, one.rows, job.zoom, float(job.settled.fps[0]))


def _write(options: argparse.Namespace, job: Job, finished: Sequence[store.Finished]) -> None:
    all_totals = totals(finished)
    json_path, csv_path, plot_path = (job.folder / name for name in OUTPUTS)
    for path, text in ((json_path, to_json(job.header, finished)), (csv_path, to_csv(finished))):
        with writing(path) as file:
            file.write(text.encode())
    kinds = {label: kind_of(described) for label, described in job.header["policies"].items()}
    title = f"{options.bundle.resolve().name}, {len(finished)} {'video' if len(finished) == 1 else 'videos'} a policy"
    plot_frontier(plot_path, all_totals, kinds, title)
    show(table(all_totals))
    videos = [job.folder / one.video for one in finished if one.video]
    for path in (json_path, csv_path, plot_path, *videos):
        print(path)


def _say(text: str) -> None:
    print(f"adacache-compare: {text}", file=sys.stderr)
