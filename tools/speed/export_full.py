"""The export of full-size STDiT3-XL/2, as a user types it: its time and its peak memory. Reads Linux's /proc."""

import contextlib
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tools.speed.memory import resident_mb

POLL_S = 0.05
COMMAND = "adacache-export"


@dataclass(frozen=True)
class ExportCosts:
    """``peak_ratio`` is peak resident memory / size of the checkpoint."""

    seconds: float
    peak_mb: float
    checkpoint_mb: float

    @property
    def peak_ratio(self) -> float:
        return self.peak_mb / self.checkpoint_mb


def measure_export(checkpoint: Path, bundle: Path) -> ExportCosts:
    """Runs the command in a process of its own.

    Raises:
        RuntimeError: it failed, or is not installed.
    """
    command = shutil.which(COMMAND, path=str(Path(sys.executable).parent)) or shutil.which(COMMAND)
    if command is None:
        raise RuntimeError(f"{COMMAND} is not installed here: pip install -e .")
    start, peak = time.perf_counter(), 0.0
    child = subprocess.Popen([command, str(checkpoint), "-o", str(bundle)])
    while child.poll() is None:
        with contextlib.suppress(OSError, KeyError):  # it may end while it is looked at
            peak = max(peak, resident_mb(child.pid)["peak"])
        time.sleep(POLL_S)
    seconds = time.perf_counter() - start
    if child.returncode:
        raise RuntimeError(f"{COMMAND} failed with exit status {child.returncode}")
    return ExportCosts(seconds, peak, checkpoint.stat().st_size / 1e6)
