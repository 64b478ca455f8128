"""Measure speed and memory as ratios, side by side in one run, on a model with random weights.

    python tools/bench.py [--json FILE]         one call, the loop, AdaCache, PyTorch eager, memory
    python tools/bench.py --export-full         the export of a full-size model (more: tools.speed.full_size)
    python tools/bench.py --compile-full        its plans in fp16, with TensorRT-RTX

A ratio holds for the machine, the size and the run that it was measured on, and for nothing else.
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from adacache_engines.bundle.files import open_bundle, read_manifest
from adacache_engines.onnxruntime.backend import OnnxRuntime
from adacache_export.convert import convert
from adacache_export.families.latte import family as latte
from adacache_export.families.open_sora import family as open_sora
from adacache_export.families.open_sora_plan import family as open_sora_plan
from adacache_export.options import Options
from adacache_runtime.pipeline import Pipeline
from tools.speed.calls import measure_calls
from tools.speed.checkpoint import config_of, write_checkpoint, write_published
from tools.speed.eager import measure_eager
from tools.speed.full_size import Costs, measure_command
from tools.speed.memory import measure_memory
from tools.speed.published import MODELS
from tools.speed.size import Size
from tools.speed.timing import Spread, TimedBackend
from tools.speed.wanted import Row, at_least, at_most, table

PLAN_PROFILES = {
    open_sora.NAME: ("480p:2s", "720p:2s"),
    latte.NAME: ("512x512:16f", "256x256..768x768:16f"),
    open_sora_plan.NAME: ("512x512:65f", "256x256..768x768:65f"),
    "wan2.1-1.3b": ("832x480:81f", "1280x720:81f"),
    "wan2.1-14b": ("832x480:81f", "1280x720:81f"),
    "wan2.2-5b": ("832x480:81f", "1280x704:81f"),
    "wan2.2-a14b": ("832x480:81f", "1280x720:81f"),
}
MEMORY_STEPS = 6  # enough for calls of both kinds
ROUND_CALLS = 3  # generations of a repetition


def measure_ratios(arguments: argparse.Namespace, folder: Path, console: Console) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of the table, and the numbers that they were computed from."""
    size = Size(**{field.name: getattr(arguments, field.name) for field in fields(Size)})
    config, request = config_of(size), replace(size.request(), steps=arguments.steps)
    torch.set_num_threads(arguments.threads)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("writing and exporting a random checkpoint", total=None)
        write_checkpoint(folder / "random.safetensors", config)
        convert(folder / "random.safetensors", folder / "bundle", Options())
        bundle = open_bundle(folder / "bundle")
        branches = len(bundle.manifest.guidance.order)

        progress.update(task, description="memory of a run of its own")
        memory = measure_memory(bundle.folder, size, branches, MEMORY_STEPS, arguments.threads)

        backend = TimedBackend(OnnxRuntime(threads=arguments.threads).open(bundle))
        pipeline = Pipeline(bundle, backend)
        total = ROUND_CALLS * arguments.repetitions * arguments.steps
        progress.update(task, description="calls of the denoiser", total=total, completed=0)
        costs = measure_calls(pipeline, backend, request, arguments.repetitions, lambda: progress.advance(task))
        progress.update(
            task, description="engines and PyTorch in turn", total=arguments.eager_repetitions + 1, completed=0
        )
        eager = measure_eager(
            bundle, backend, config, request, arguments.eager_repetitions, lambda: progress.advance(task)
        )
    fraction = memory["peak"] / memory["bound"]
    rows = [
        at_most("reuse_stack", "reused call / full call, granularity stack", costs.reuse["stack"], 0.01),
        at_most("reuse_block", "reused call / full call, granularity block", costs.reuse["block"], 0.03),
        at_most("overhead", "time of a call outside engines / full call", costs.overhead, 0.01),
        at_least(
            "efficiency",
            f"speed-up of AdaCache / ({costs.calls} calls / {costs.computed} computed)",
            costs.efficiency,
            0.95,
        ),
        at_most("eager_ratio", "full call by engines / by PyTorch eager", eager.ratio, 1.0),
        at_most(
            "peak_memory_ratio",
            "peak memory of a run / (2 x weights + 6 hidden states)",
            Spread(fraction, fraction, fraction),
            1.0,
        ),
    ]
    details = {
        "size": asdict(size),
        "full_call_ms": asdict(costs.full_call_ms),
        "engine_full_call_ms": asdict(eager.engine_ms),
        "eager_full_call_ms": asdict(eager.eager_ms),
        "engine_eager_difference": eager.difference,
        "memory_mb": memory,
    }
    return rows, details


def measure_full_export(name: str, folder: Path, console: Console) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of the table, and the numbers that they were computed from."""
    console.print(f"writing a random checkpoint of full size: {name}")
    checkpoint, model = folder / "checkpoint", MODELS[name]
    nbytes = write_published(checkpoint, model, "float32")
    console.print(f"exporting {nbytes / 1e9:.1f} GB")
    costs = measure_command([str(checkpoint), "--family", model.family, "-o", str(folder / "bundle")], nbytes)
    return _rows("export", costs, 6, 1.5), {"model": name, "export": asdict(costs)}


def measure_full_plans(name: str, folder: Path, console: Console) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of the table, and the numbers that they were computed from."""
    console.print(f"writing and exporting a random checkpoint of full size: {name}")
    checkpoint, bundle, model = folder / "checkpoint", folder / "bundle", MODELS[name]
    write_published(checkpoint, model, "float32")
    convert(checkpoint, bundle, Options(precision="fp16", family=model.family))
    shutil.rmtree(checkpoint)
    profiles = [word for profile in PLAN_PROFILES[name] for word in ("--profile", profile)]
    weights = bundle / read_manifest(bundle).weights
    costs = measure_command([str(bundle), "--backend", "tensorrt-rtx", *profiles], weights.stat().st_size)
    return _rows("compile", costs, 3, 2.5), {"model": name, "compile": asdict(costs)}


def _rows(key: str, costs: Costs, minutes: float, ratio: float) -> list[Row]:
    def once(value: float) -> Spread:
        return Spread(value, value, value)

    return [
        at_most(f"{key}_minutes", "minutes that adacache-export took", once(costs.seconds / 60), minutes),
        at_most(
            f"{key}_peak_ratio", "its peak resident memory / size of the weights file", once(costs.peak_ratio), ratio
        ),
    ]


def machine(threads: int) -> dict[str, Any]:
    """Return the machine, size and versions that the ratios hold for."""
    versions = {name: version(name) for name in ("onnxruntime", "torch", "numpy")}
    return {"processor": platform.machine(), "cores": os.cpu_count(), "threads": threads, **versions}


def report(rows: list[Row], details: dict[str, Any], arguments: argparse.Namespace, console: Console) -> None:
    console.print(table(rows))
    if "memory_mb" in details:
        parts = ", ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in details["memory_mb"].items())
        console.print(f"memory in MB: {parts}")
        calls = (
            f"{name[:-3].replace('_', ' ')} {details[name]['median']:.0f}" for name in details if name[-3:] == "_ms"
        )
        console.print(f"medians in ms: {', '.join(calls)}")
    for command in {"export", "compile"} & details.keys():
        console.print(", ".join(f"{name} {value:.0f}" for name, value in details[command].items()))
    if arguments.json is not None:
        ranges = {row.key: [row.spread.low, row.spread.high] for row in rows}
        values = {row.key: row.spread.median for row in rows}
        document = {**values, "ranges": ranges, "machine": machine(arguments.threads), **details}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    full = made.add_mutually_exclusive_group()
    full.add_argument("--export-full", action="store_true", help="measure the full-size export (about 10 GB of disk)")
    full.add_argument("--compile-full", action="store_true", help="measure its plans (about 8 GB of disk)")
    made.add_argument(
        "--model", "--family", choices=tuple(MODELS), default=open_sora.NAME, help="of full size (%(default)s)"
    )
    made.add_argument("--steps", type=int, default=12, help="calls of a generation (%(default)s)")
    made.add_argument("--repetitions", type=int, default=3, help="of generations of each kind (%(default)s)")
    made.add_argument("--eager-repetitions", type=int, default=7, help="of full calls in turn (%(default)s)")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of both libraries (%(default)s)")
    made.add_argument("--temp", type=Path, metavar="DIR", help="where to put checkpoint and bundle meanwhile")
    words = {"caption_width": "of the text encoder", "frames": "of the latent", "tokens": "a frame, a square number"}
    for field in fields(Size):
        option = "--" + field.name.replace("_", "-")
        explained = words.get(
            field.name, {"depth": "blocks of each kind", "text": "tokens"}.get(field.name, "of the model")
        )
        made.add_argument(option, type=int, default=field.default, help=f"{explained} (%(default)s)")
    return made


def main() -> None:
    arguments = parser().parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="adacache-bench-", dir=arguments.temp) as name:
        if arguments.export_full:
            rows, details = measure_full_export(arguments.model, Path(name), console)
        elif arguments.compile_full:
            rows, details = measure_full_plans(arguments.model, Path(name), console)
        else:
            rows, details = measure_ratios(arguments, Path(name), console)
    report(rows, details, arguments, console)


if __name__ == "__main__":
    main()
