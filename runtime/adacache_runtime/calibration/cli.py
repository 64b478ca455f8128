"""``adacache-calibrate``: sets caching policies for a model and writes them into its bundle."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from adacache_engines.backends import BACKENDS, ONNXRUNTIME
from adacache_engines.bundle import read_manifest, replace_manifest
from adacache_engines.errors import InputError, require
from adacache_engines.manifest import Manifest, Preset
from adacache_engines.ort import PROVIDERS
from adacache_runtime.calibration.goal import Goal
from adacache_runtime.calibration.methods import EXTRAPOLATED, METHODS, NEEDS
from adacache_runtime.calibration.process import Advance, Confirmed, Task, calibrate
from adacache_runtime.command import run, size
from adacache_runtime.comparison.inputs import header, read_prompts
from adacache_runtime.comparison.progress import comparison_progress
from adacache_runtime.decode import without_decoder
from adacache_runtime.files import writing
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request, settle

ALL = (*METHODS, *(f"{method}{EXTRAPOLATED}" for method in METHODS))
FEWEST = 4  # prompts: two to record, two to confirm on
SETTINGS = "settings.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 for an error, 2 for wrong usage, 130 or 143 when stopped."""
    options = _parser().parse_args(arguments)
    return run("adacache-calibrate", lambda _: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "adacache-calibrate",
        description="Records fully computed generations, searches policies' parameters on them, confirms the best by "
        "real runs on prompts that were not recorded, and writes them into the bundle as presets. A calibration that "
        "was stopped goes on where it was when the command is given again.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that adacache-export made")
    what = parser.add_argument_group("what to reach").add_argument
    goal = parser.add_mutually_exclusive_group(required=True).add_argument
    goal("--target-psnr", type=float, metavar="DB", help="against full compute; the fastest policy that keeps it")
    goal("--target-speedup", type=float, metavar="X", help="over full compute; the most faithful policy that gives it")
    what("--prompts", required=True, type=Path, metavar="FILE", help="a prompt a line; # begins a remark")
    what("--held-out", type=Path, metavar="FILE", help="prompts to confirm on (default: every third of the others)")
    what(
        "--methods",
        nargs="+",
        choices=ALL,
        default=list(ALL),
        metavar="METHOD",
        help=f"of {', '.join(METHODS)}, each also with {EXTRAPOLATED} (default: all that the bundle has probes for)",
    )
    what("--name", default="calibrated", help="of the preset; each method's is NAME-METHOD (default: calibrated)")
    video = parser.add_argument_group("video and sampling").add_argument
    video("--size", type=size, metavar="HxW", help="pixels (default: the bundle's)")
    video("--frames", type=int, metavar="F", help="1 = an image (default: the bundle's)")
    video("--steps", type=int, help="(default: the bundle's)")
    video("--guidance", type=float, help="(default: the bundle's)")
    video("--seed", type=int, default=0, help="of the first prompt's noise; others follow (default: 0)")
    work = parser.add_argument_group("how much work").add_argument
    work("--confirm", type=int, default=4, metavar="N", help="methods that are run on held-out prompts (default: 4)")
    work("--gaps", type=int, default=10, metavar="G", help="calls that a reuse is recorded over (default: 10)")
    work("--tries", type=int, default=500, metavar="N", help="random changes of a codebook (default: 500)")
    output = parser.add_argument_group("output").add_argument
    output("-o", "--output", type=Path, metavar="DIR", help="of records and runs (default: BUNDLE-calibration)")
    output("--force", action="store_true", help="begin anew where the folder holds another calibration")
    engine = parser.add_argument_group("engine").add_argument
    engine("--backend", choices=BACKENDS, default=ONNXRUNTIME, help="(default: onnxruntime)")
    engine("--provider", choices=tuple(PROVIDERS), default="cpu", help="of ONNX Runtime (default: cpu)")
    engine("--threads", type=int, default=0, help="of ONNX Runtime (default: one a core)")
    return parser


def _run(options: argparse.Namespace) -> None:
    require("skimage", "compare")
    recorded, held_out = _split(options)
    pipeline = Pipeline.open(options.bundle, options.backend, options.provider, options.threads)
    with closing(pipeline.backend):
        task = _task(options, pipeline, recorded, held_out)
        confirmed = calibrate(task)
    _write(options, task, confirmed)
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(_table(confirmed))
    print(f"{options.bundle}: presets {', '.join(_presets(options, task, confirmed))}")
    print(_report(options, task))


def _split(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Prompts to record and prompts to confirm on."""
    prompts = read_prompts(options.prompts)
    if options.held_out:
        held_out = read_prompts(options.held_out)
        both = [prompt for prompt in prompts if prompt in held_out]
        if both:
            raise InputError(f"{options.held_out} has prompts of {options.prompts}, such as {both[0]!r}; take them out")
    else:
        held_out, prompts = prompts[2::3], [prompt for index, prompt in enumerate(prompts) if index % 3 != 2]
    if len(prompts) < FEWEST // 2 or len(held_out) < FEWEST // 2:
        raise InputError(
            f"{len(prompts)} prompts to record and {len(held_out)} to confirm on are too few; give at least {FEWEST}, "
            "better 20, of the kind that the bundle will serve"
        )
    return prompts, held_out


def _task(options: argparse.Namespace, pipeline: Pipeline, recorded: Sequence[str], held_out: Sequence[str]) -> Task:
    manifest = pipeline.bundle.manifest
    goal = Goal(quality_db=options.target_psnr, speed_up=options.target_speedup)
    if options.target_psnr is not None and manifest.latent.decoder == "none":
        raise InputError(
            f"--target-psnr needs pixels, and this bundle has no decoder; {without_decoder(manifest.latent)}, or give "
            "--target-speedup"
        )
    for name, value, least in (
        ("--target-speedup", options.target_speedup, 1),
        ("--target-psnr", options.target_psnr, 1),
        ("--confirm", options.confirm, 1),
        ("--gaps", options.gaps, 1),
        ("--tries", options.tries, 0),
    ):
        if value is not None and value < least:
            raise InputError(f"{name} {value} is not possible; choose at least {least}")

    def requests(prompts: Sequence[str], first: int) -> list[Request]:
        return [
            Request(
                height=options.size[0] if options.size else None,
                width=options.size[1] if options.size else None,
                frames=options.frames,
                steps=options.steps,
                guidance=options.guidance,
                prompts=(prompt,),
                seed=seed,
            )
            for seed, prompt in enumerate(prompts, first)
        ]

    to_record = requests(recorded, options.seed)
    settled = settle(pipeline.bundle, to_record[0])
    asked = {
        "size": f"{settled.height}x{settled.width}",
        "frames": settled.frames,
        "steps": settled.steps,
        "guidance": settled.guidance,
        "threads": options.threads,
    }
    folder = options.output or Path(f"{options.bundle.resolve().stem}-calibration")
    lists = {"prompts": list(recorded), "held_out": list(held_out), "seed": options.seed, "gaps": options.gaps}
    _begin(folder, header(pipeline.bundle, pipeline.backend.name, {}, {**asked, **lists}), options.force)
    return Task(
        pipeline=pipeline,
        recorded=to_record,
        held_out=requests(held_out, options.seed + len(recorded)),
        goal=goal,
        methods=_methods(options, manifest),
        confirmed=options.confirm,
        gaps=options.gaps,
        tries=options.tries,
        folder=folder,
        asked=asked,
        progress=_progress,
        say=_say,
    )


def _methods(options: argparse.Namespace, manifest: Manifest) -> list[str]:
    probes, kept = manifest.probes(), []
    for method in options.methods:
        site = NEEDS.get(method.removesuffix(EXTRAPOLATED))
        if site is None or site in probes:
            kept.append(method)
            continue
        remedy = f"{method} measures {site}, which this bundle has no probe for; export with --probe {site}"
        if options.methods != list(ALL):
            raise InputError(remedy)
        _say(f"without {method}: it needs --probe {site} at export")
    return kept


def _begin(folder: Path, settings: Mapping[str, Any], force: bool) -> None:
    """Has the folder there, and sees that what it holds is of this calibration."""
    path = folder / SETTINGS
    try:
        folder.mkdir(exist_ok=True)
        if force:
            for old in (*folder.glob("record-*.npz"), *folder.glob("runs-*.jsonl"), path):
                old.unlink(missing_ok=True)
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except OSError as error:
        raise InputError(f"{folder} cannot be used: {error.strerror or error}; choose another -o") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); give --force to begin anew") from error
    if before is None:
        with writing(path) as file:
            file.write(json.dumps(settings, indent=1).encode())
    elif before != json.loads(json.dumps(settings)):
        changed = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        raise InputError(
            f"{folder} holds another calibration (other {', '.join(changed)}); give --force to begin anew, or another "
            "-o"
        )


@contextmanager
def _progress(what: str, steps: int) -> Iterator[Advance]:
    if not steps:
        yield lambda: None
        return
    _say(what)
    with comparison_progress(steps) as advance:
        yield advance


def _say(text: str) -> None:
    print(f"adacache-calibrate: {text}", file=sys.stderr, flush=True)


def _presets(options: argparse.Namespace, task: Task, confirmed: Sequence[Confirmed]) -> dict[str, Preset]:
    """The best under the name itself, and each confirmed method under its own."""
    decodes = task.pipeline.bundle.manifest.latent.decoder != "none"
    presets: dict[str, Preset] = {}
    for one in confirmed:
        trial = one.trial
        assert isinstance(one.found.policy, BaseModel)
        note = (
            f"{one.found.method}, calibrated for {task.goal.text()} on {len(task.recorded)} prompts; on "
            f"{trial.prompts} others {trial.quality_db.mean:.1f} dB at {trial.speed_up:.2f} times the speed of full "
            f"compute, {trial.computed:.1f} of {trial.calls} calls computed ({task.pipeline.backend.name})"
        )
        preset = Preset(
            policy=one.found.policy.model_dump(mode="json"),
            note=note,
            measured={
                "psnr_db" if decodes else "latents_db": round(trial.quality_db.mean, 3),
                "speed_up": round(trial.speed_up, 3),
                "computed_calls": round(trial.computed, 3),
                "calls": trial.calls,
                "prompts": trial.prompts,
            },
        )
        presets.setdefault(options.name, preset)
        presets[f"{options.name}-{one.found.method}"] = preset
    return presets


def _write(options: argparse.Namespace, task: Task, confirmed: Sequence[Confirmed]) -> None:
    content = {
        "goal": task.goal.text(),
        "recorded_prompts": len(task.recorded),
        "methods": [
            {
                "method": one.found.method,
                "policy": one.found.policy.model_dump(mode="json") if isinstance(one.found.policy, BaseModel) else None,
                "forecast": {
                    "computed_calls": one.found.computed,
                    "quality_db": one.found.quality_db,
                    "speed_up": one.forecast_speed_up,
                },
                "measured": asdict(one.trial),
            }
            for one in confirmed
        ],
    }
    with writing(_report(options, task)) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
    manifest = read_manifest(options.bundle)
    policies = {**manifest.policies, **_presets(options, task, confirmed)}
    replace_manifest(options.bundle, manifest.model_copy(update={"policies": policies}))


def _report(options: argparse.Namespace, task: Task) -> Path:
    return task.folder / f"{options.name}.json"


def _table(confirmed: Sequence[Confirmed]) -> Table:
    """Forecast beside measured, the best first."""
    table = Table("method", "calls, forecast", "measured", "dB, forecast", "measured", "speed, forecast", "measured")
    for column in table.columns[1:]:
        column.justify = "right"
    for one in confirmed:
        trial, margin = one.trial, one.trial.quality_db.margin
        table.add_row(
            one.found.method,
            f"{one.found.computed:.1f}",
            f"{trial.computed:.1f}",
            f"{one.found.quality_db:.1f}",
            f"{trial.quality_db.mean:.1f}" + (f" ± {margin:.1f}" if margin is not None else ""),
            f"{one.forecast_speed_up:.2f}",
            f"{trial.speed_up:.2f}",
        )
    return table
