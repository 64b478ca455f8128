"""Measure time and peak memory of commands on full-size models, as a user types them."""

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL_S = 0.05
COMMAND = "adacache-export"


@dataclass(frozen=True)
class Costs:
    """Time and memory of a command.

    Attributes:
        peak_ratio: peak resident memory, of all its processes together, over the size of the weights file.
        private_mb: the part of that memory that is not mapped from files, at its own peak.
    """

    seconds: float
    peak_mb: float
    weights_mb: float
    private_mb: float

    @property
    def peak_ratio(self) -> float:
        return self.peak_mb / self.weights_mb


def measure_command(arguments: Sequence[str], weights: Path) -> Costs:
    """Run adacache-export in a process of its own.

    Raises:
        RuntimeError: the command failed, or is not installed.
    """
    command = shutil.which(COMMAND, path=str(Path(sys.executable).parent)) or shutil.which(COMMAND)
    if command is None:
        raise RuntimeError(f"{COMMAND} is not installed here: pip install -e .")
    start, peak, private = time.perf_counter(), 0.0, 0.0
    child = subprocess.Popen([command, *arguments])
    while child.poll() is None:
        now, of_that_private = _resident_mb(child.pid)
        peak, private = max(peak, now), max(private, of_that_private)
        time.sleep(POLL_S)
    seconds = time.perf_counter() - start
    if child.returncode:
        raise RuntimeError(f"{COMMAND} failed with exit status {child.returncode}")
    return Costs(seconds, peak, weights.stat().st_size / 1e6, private)


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
