"""Compare a Wan in a bundle with diffusers, torch.compile, and two caches for diffusers, on the same work.

    python tools/speed/peers.py [--json FILE] [--results DIR]

The model has random weights. All sides have the same ones, the same noise, text, guidance and sampler, and all caches
with a threshold the same one. Generations advance a call at a time, in turn, so that a machine that slows down does so
for all, and a call is compared with the same call of diffusers. Ratios hold for the machine, the size and the run that
they were measured on, and for nothing else.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from adacache_engines.onnxruntime.backend import OnnxRuntime, share_threads
from adacache_engines.onnxruntime.provider import import_onnxruntime
from adacache_export.convert import convert
from adacache_export.options import Options
from adacache_runtime.pipeline import Pipeline
from tools.speed.contenders import EAGER, NEVER, SAME_RULE, contenders
from tools.speed.in_turn import Comparison, measure
from tools.speed.timing import Spread
from tools.speed.wan import WanSize, random_model
from tools.speed.wanted import table

CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
HEAD = ("", "full call", "cached call", "cache, in hidden states", "computed calls", "the same calls")
PACKAGES = ("diffusers", "torch", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Settings:
    """The settings of a comparison.

    Attributes:
        steps: number of calls of a generation.
        rounds: number of generations of each contender.
        threads: number of threads of both libraries.
        threshold: largest change at which a cache reuses.
        clock: clock of the times: ``wall``, or ``cpu`` for the processor time of this process, on a busy machine.
    """

    steps: int = 8
    rounds: int = 1
    threads: int = os.cpu_count() or 1
    threshold: float = 0.28
    clock: str = "wall"


def compare(folder: Path, size: WanSize, settings: Settings, console: Console) -> Comparison:
    """Export a random Wan into ``folder``, and measure all contenders on it."""
    torch.set_num_threads(settings.threads)
    share_threads(import_onnxruntime("cpu"), settings.threads)  # for the export, too: a process has one pool
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("writing and exporting a random Wan", total=None)
        model = random_model(size)
        model.save_pretrained(folder / "model")
        convert(folder / "model", folder / "bundle", Options())
        with Pipeline.open(folder / "bundle", OnnxRuntime(threads=settings.threads)) as pipeline:
            request = replace(size.request(), steps=settings.steps)
            entered = contenders(model, pipeline, request, settings.threshold)
            total = settings.rounds * settings.steps * len(entered)
            progress.update(task, description="calls in turn", total=total, completed=0)
            return measure(entered, settings.rounds, CLOCKS[settings.clock], lambda: progress.advance(task))


def lines(comparison: Comparison, size: WanSize) -> list[tuple[str, ...]]:
    """Return a line for each contender, with the columns of :data:`HEAD`."""
    made: list[tuple[str, ...]] = []
    for name, found in comparison.measured.items():
        if found.note:
            made.append((name, found.note, "", "", "", ""))
            continue
        reuses, same = not all(found.computed), comparison.same_calls(name)
        made.append(
            (
                name,
                _told(comparison.full(name)),
                _told(comparison.cached(name)),
                f"{(found.cache_nbytes or 0) / size.hidden_nbytes:.1f}" if reuses else "",
                " ".join(map(str, found.computed_calls())) if reuses else "all",
                "" if same is None else f"{'as' if same else 'NOT as'} {SAME_RULE[name]}",
            )
        )
    return made


def _told(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})"


def shown(comparison: Comparison, size: WanSize) -> Table:
    """Return the contenders as a table for a terminal."""
    made = Table(*HEAD, title=f"relative to a full call of {EAGER}: median (smallest to largest)")
    for line in lines(comparison, size):
        made.add_row(*line)
    return made


def document(comparison: Comparison, size: WanSize, settings: Settings) -> dict[str, Any]:
    """Return the content of the JSON file: ratios, and what they hold for."""

    def ratio(spread: Spread | None) -> dict[str, float] | None:
        return None if spread is None else asdict(spread)

    return {
        "wanted": {
            row.key: {"what": row.what, **asdict(row.spread), "limit": row.wanted, "met": row.met}
            for row in comparison.wanted()
        },
        "contenders": {
            name: {
                "full": ratio(comparison.full(name)),
                "cached": ratio(comparison.cached(name)),
                "cache_hidden_states": None if found.cache_nbytes is None else found.cache_nbytes / size.hidden_nbytes,
                "computed_calls": found.computed_calls(),
                "same_calls": comparison.same_calls(name),
                "note": found.note,
            }
            for name, found in comparison.measured.items()
        },
        "difference": comparison.difference(NEVER, EAGER),
        "size": asdict(size),
        "settings": asdict(settings),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), **versions()},
    }


def versions() -> dict[str, str]:
    """Return the versions of the libraries that are compared."""
    return {name: version(name) for name in PACKAGES}


def markdown(comparison: Comparison, size: WanSize, settings: Settings, command: str) -> str:
    """Return the page of results, which ``command`` has made."""
    apart = comparison.difference(NEVER, EAGER)
    assert apart is not None  # both of them have ended
    parts = [
        "# Peers on the same work",
        "",
        f"Made by `{command}`:",
        "generations of one Wan with random weights in float32, a call at a time, in turn.",
        "",
        f"- Model: {size.depth} blocks, {size.width} wide; without text encoder and VAE.",
        f"- Tokens: 2 guidance branches in one batch x {size.tokens}, and {size.text} of text.",
        f"- Threshold of all caches that have one: {settings.threshold:g}.",
        f"- Calls of a generation: {settings.steps}; generations of each kind: {settings.rounds}; threads:"
        f" {settings.threads}; clock: {settings.clock}.",
        f"- Versions: {', '.join(f'{name} {number}' for name, number in versions().items())}.",
        f"- Final latents of `{NEVER}` and of {EAGER} differ by at most {apart:.0e} of their root mean square.",
        "",
        f"Times are relative to the same call of {EAGER}, which is a full one: the median, and from the smallest",
        "to the largest. `never`, `fbcache`, `easycache` and `adacache` are this project's policies. The memory of a",
        "cache is counted in hidden states of both branches.",
        "",
        *_rows(HEAD, lines(comparison, size)),
        "",
        *_rows(
            ("wanted", "median", "smallest to largest", "limit", ""),
            [
                (
                    row.what,
                    f"{row.spread.median:.3f}",
                    f"{row.spread.low:.3f} to {row.spread.high:.3f}",
                    row.wanted,
                    "yes" if row.met else "NO",
                )
                for row in comparison.wanted()
            ],
        ),
        "",
        "The ratios hold for the machine, the size and the run that they were measured on, and for nothing else.",
    ]
    return "\n".join(parts) + "\n"


def _rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the ratios there")
    made.add_argument("--results", type=Path, metavar="DIR", help="folder that gets peers.md")
    made.add_argument("--temp", type=Path, metavar="DIR", help="where to put checkpoint and bundle meanwhile")
    words = {
        "steps": "calls of a generation",
        "rounds": "generations of each contender",
        "threads": "threads of both libraries",
        "threshold": "largest change at which a cache reuses",
        "depth": "blocks of the model",
        "width": "width of the model",
        "heads": "attention heads of the model",
        "inner": "inner width of its MLPs",
        "caption_width": "width of the text encoder's states",
        "frames": "latent frames",
        "rows": "rows of tokens of a frame",
        "columns": "columns of tokens of a frame",
        "text": "tokens of the prompt",
    }
    made.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: for a busy machine (%(default)s)")
    defaults = {field.name: field.default for kind in (Settings, WanSize) for field in fields(kind)}
    for name, told in words.items():
        value = defaults[name]
        option = "--" + name.replace("_", "-")
        made.add_argument(option, type=type(value), default=value, metavar="N", help=f"{told} (%(default)s)")
    return made


def main() -> None:
    """Run the command."""
    chosen = vars(parser().parse_args())
    settings = Settings(**{field.name: chosen[field.name] for field in fields(Settings)})
    size = WanSize(**{field.name: chosen[field.name] for field in fields(WanSize)})
    console = Console()
    with tempfile.TemporaryDirectory(prefix="adacache-peers-", dir=chosen["temp"]) as name:
        comparison = compare(Path(name), size, settings, console)
    console.print(shown(comparison, size))
    console.print(table(comparison.wanted()))
    if chosen["json"]:
        chosen["json"].write_text(json.dumps(document(comparison, size, settings), indent=1) + "\n", encoding="utf-8")
    if chosen["results"]:
        command = shlex.join(["python", "tools/speed/peers.py", *sys.argv[1:]])
        page = markdown(comparison, size, settings, command)
        (chosen["results"] / "peers.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
