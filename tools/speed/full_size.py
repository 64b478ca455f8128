"""Measure time and peak memory of the export of published models of full size, with random weights.

    python -m tools.speed.full_size [MODEL ...] [--disk GB] [--depth N] [--results DIR] [--json FILE]

Each model is written, exported by adacache-export in a process of its own, as a user types it, and deleted. The bundle
must fit on the disk: where it does not, the model is cut to as many of its first blocks as fit. The room that is left
holds random weights; those beyond it are holes in the checkpoint's files, which are read, converted, mapped and written
as others are.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from adacache_engines.bundle.files import read_manifest
from adacache_engines.bundle.manifest import DTYPES, Precision
from adacache_engines.bundle.tensors import ELEMENT_TYPES
from tools.speed.checkpoint import write_published
from tools.speed.published import MODELS, Published

POLL_S = 0.05
COMMAND = "adacache-export"
WAN: Mapping[str, Precision] = {  # and the precision that each is exported in
    "wan2.1-1.3b": "fp32",
    "wan2.2-5b": "bf16",
    "wan2.1-14b": "bf16",
    "wan2.2-a14b": "bf16",
}
MOST_MINUTES = {"wan2.1-1.3b": 6.0}
MOST_OF_FILE = 1.5  # peak memory over the size of the weights
MOST_BESIDE_A_STAGE_MB = 2000.0
SPARE_NBYTES = 5e9  # of the disk, which is left free


@dataclass(frozen=True)
class Costs:
    """Time and memory of a command.

    Attributes:
        seconds: time by the clock.
        processor_s: time of all processors together, in the program and in the system.
        peak_mb: peak resident memory, of all its processes together.
        private_mb: the part of that memory that is not mapped from files, at its own peak.
        weights_mb: size of the weights that it reads.
    """

    seconds: float
    processor_s: float
    peak_mb: float
    private_mb: float
    weights_mb: float

    @property
    def peak_ratio(self) -> float:
        return self.peak_mb / self.weights_mb


def measure_command(arguments: Sequence[str], weights_nbytes: int) -> Costs:
    """Run adacache-export in a process of its own.

    Raises:
        RuntimeError: the command failed, or is not installed.
    """
    command = shutil.which(COMMAND, path=str(Path(sys.executable).parent)) or shutil.which(COMMAND)
    if command is None:
        raise RuntimeError(f"{COMMAND} is not installed here: pip install -e .")
    start, before, peak, private = time.perf_counter(), _processor_s(), 0.0, 0.0
    child = subprocess.Popen([command, *arguments])
    while child.poll() is None:
        now, of_that_private = _resident_mb(child.pid)
        peak, private = max(peak, now), max(private, of_that_private)
        time.sleep(POLL_S)
    seconds = time.perf_counter() - start
    if child.returncode:
        raise RuntimeError(f"{COMMAND} failed with exit status {child.returncode}")
    return Costs(seconds, _processor_s() - before, peak, private, weights_nbytes / 1e6)


def _processor_s() -> float:
    """Return the time that all processors gave to child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _resident_mb(process: int) -> tuple[float, float]:
    """Return the memory of a process and its children: all of it, and the part that is not mapped from files.

    Pages that they share count for each.
    """
    try:
        first = psutil.Process(process)
        tree = [one.memory_info() for one in (first, *first.children(recursive=True))]
    except psutil.Error:  # one ended while it was looked at
        return 0.0, 0.0
    # Linux's "shared" is what is mapped from files
    return sum(one.rss for one in tree) / 1e6, sum(one.rss - getattr(one, "shared", 0) for one in tree) / 1e6


@dataclass(frozen=True)
class Export:
    """The measured export of a model.

    Attributes:
        model: name of the model.
        precision: precision of the checkpoint and of the bundle.
        depth: number of blocks that each transformer had.
        published_depth: number of blocks that it has as published.
        random: share of the weights that were random, not holes.
        stage_mb: size of the weights of the largest stage.
        costs: time and memory of the command.
    """

    model: str
    precision: Precision
    depth: int
    published_depth: int
    random: float
    stage_mb: float
    costs: Costs

    @property
    def beside_mb(self) -> float:
        """Peak memory beside the weights of one stage."""
        return self.costs.peak_mb - self.stage_mb

    def missed(self) -> list[str]:
        """Return what is wanted of the export and does not hold."""
        limits = {
            f"{MOST_BESIDE_A_STAGE_MB / 1e3:g} GB beside a stage": self.beside_mb <= MOST_BESIDE_A_STAGE_MB,
            f"{MOST_OF_FILE:g} of the weights": self.costs.peak_ratio <= MOST_OF_FILE,
        }
        if self.model in MOST_MINUTES:
            minutes = MOST_MINUTES[self.model]
            limits[f"{minutes:g} minutes"] = self.costs.seconds <= 60 * minutes
        return [limit for limit, held in limits.items() if not held]


def fitting(model: Published, itemsize: int, disk_nbytes: float) -> Published:
    """Return a model, cut to as many of its first blocks as make a bundle that fits on the disk.

    Raises:
        RuntimeError: not even one block fits.
    """
    for depth in range(model.depth, 0, -1):
        cut = model.with_depth(depth)
        if cut.parameters() * itemsize <= disk_nbytes:
            return cut
    raise RuntimeError(f"{disk_nbytes / 1e9:.1f} GB of disk hold no block of this model; choose another --temp")


def measure(name: str, precision: Precision, folder: Path, disk_nbytes: float, depth: int | None = None) -> Export:
    """Write a model's checkpoint into an empty folder, export it there, and delete both.

    Args:
        name: name of the model, a key of :data:`tools.speed.published.MODELS`.
        precision: precision of the checkpoint and of the bundle.
        folder: folder to work in.
        disk_nbytes: room on the disk for both.
        depth: number of blocks to keep at most; None = as many as fit.
    """
    published, dtype = MODELS[name], DTYPES[precision]
    itemsize = ELEMENT_TYPES[dtype].numpy.itemsize
    wanted = published.with_depth(min(depth or published.depth, published.depth))
    model = fitting(wanted, itemsize, disk_nbytes)
    room = disk_nbytes - model.parameters() * itemsize
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    try:
        nbytes = write_published(checkpoint, model, dtype, room)
        words = ["--family", model.family, "--precision", precision, "-o", str(bundle)]
        costs = measure_command([str(checkpoint), *words], nbytes)
        stages = [graph.weights_nbytes or 0 for graph in read_manifest(bundle).loop_graphs()]
    finally:
        for made in (checkpoint, bundle):
            shutil.rmtree(made, ignore_errors=True)
    random = min(1.0, room / nbytes)
    return Export(name, precision, model.depth, published.depth, random, max(stages) / 1e6, costs)


HEAD = ("model", "precision", "blocks", "weights", "random", "largest stage", "peak", "of the weights",
        "beside a stage", "minutes", "processor", "missed")  # fmt: skip


def row(export: Export) -> tuple[str, ...]:
    """Return the cells of an export in the table; memory is in GB of 10^9 bytes, times are in minutes."""
    costs = export.costs
    return (
        export.model,
        export.precision,
        f"{export.depth} of {export.published_depth}",
        f"{costs.weights_mb / 1e3:.1f} GB",
        f"{export.random:.0%}",
        f"{export.stage_mb / 1e3:.2f} GB",
        f"{costs.peak_mb / 1e3:.2f} GB",
        f"{costs.peak_ratio:.2f}",
        f"{export.beside_mb / 1e3:.2f} GB",
        f"{costs.seconds / 60:.1f}",
        f"{costs.processor_s / 60:.1f}",
        ", ".join(export.missed()) or "nothing",
    )


PAGE = """# Exports of full size

Made by `{command}`,
on {cores} CPU cores: `adacache-export` of checkpoints of random weights in shards, in the sizes that Wan was published
in, without text encoder and VAE.

{table}

- `weights`: size of the checkpoint, and about that of the bundle; GB are 10^9 bytes.
- `blocks`: where not all of them fit on the disk beside their bundle, the first ones. The export holds one stage at a
  time, so that its peak does not depend on their number; that the rest would not raise it is an extrapolation.
- `random`: share of the weights that is random. The others are zeros that the disk holds as holes in the files; they
  are read, converted, mapped, written, hashed and compared as others are.
- `peak`: largest resident memory, with all pages that are mapped from files; `beside a stage` is what remains of it
  without the weights of the largest stage.
- `minutes`: by the clock, on a machine that may have had other work to do; `processor`: minutes of all cores together.
- `missed`: wanted are at most {ratio:g} of the weights, {beside:g} GB beside a stage{minutes}.
"""


def markdown(exports: Sequence[Export], command: str) -> str:
    """Return the page of results."""
    lines = [HEAD, ("---",) * len(HEAD), *map(row, exports)]
    wanted = "".join(f", and {most:g} minutes for {name}" for name, most in MOST_MINUTES.items())
    return PAGE.format(
        command=command,
        cores=psutil.cpu_count(),
        table="\n".join(f"| {' | '.join(cells)} |" for cells in lines),
        ratio=MOST_OF_FILE,
        beside=MOST_BESIDE_A_STAGE_MB / 1e3,
        minutes=wanted,
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"one or more of {', '.join(MODELS)} (Wan's)")
    parser.add_argument("--precision", choices=tuple(DTYPES), help="of all models (fp32 for wan2.1-1.3b, else bf16)")
    parser.add_argument("--depth", type=int, metavar="N", help="number of blocks to keep at most (all that fit)")
    parser.add_argument("--disk", type=float, metavar="GB", help="room for checkpoint and bundle (what is free)")
    parser.add_argument("--temp", type=Path, metavar="DIR", help="where to put checkpoint and bundle meanwhile")
    parser.add_argument("--results", type=Path, metavar="DIR", help="folder that gets full-size.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args()
    names = options.models or [*WAN]
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"no published model is called {', '.join(unknown)}; there are {', '.join(MODELS)}")
    exports, console = [], Console()
    with tempfile.TemporaryDirectory(prefix="adacache-full-", dir=options.temp) as folder:
        free = shutil.disk_usage(folder).free - SPARE_NBYTES
        room = free if options.disk is None else min(free, options.disk * 1e9)
        for name in names:
            precision = options.precision or WAN.get(name, "fp32")
            console.print(f"{name}: writing a checkpoint of random weights, and exporting it in {precision}")
            exports.append(measure(name, precision, Path(folder), room, options.depth))
    table = Table(*HEAD)
    for export in exports:
        table.add_row(*row(export))
    console.print(table)
    if options.results:
        chosen = {name: getattr(options, name) for name in ("precision", "depth", "disk")}
        words = [*options.models, *(f"--{name} {value}" for name, value in chosen.items() if value is not None)]
        command = " ".join(["python -m tools.speed.full_size", *words, "--results tools/results"])
        (options.results / "full-size.md").write_text(markdown(exports, command), encoding="utf-8")
    if options.json:
        content = [asdict(export) | {"missed": export.missed()} for export in exports]
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
