"""Run a phase in a process of its own: whatever it does, it ends at its cap, and so does everything that it started."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
CHILD = "tools.gpu.running.child"
SAID = 2000  # characters of a process's last words that are kept
REAPING_S = 10.0  # for a process that was killed to be gone; one inside a driver's call may stay


@dataclass(frozen=True)
class Ended:
    """The end of a process.

    Attributes:
        status: exit status, negative for a signal; None = it could not be ended.
        capped: whether it was ended by its cap.
        seconds: how long it ran.
        said: its last words.
    """

    status: int | None
    capped: bool
    seconds: float
    said: str


def run_module(module: str, arguments: Mapping[str, Any], part: Path, log: Path, cap_s: float) -> Ended:
    """Run ``module.run(arguments, report)`` in a process of its own, and wait for its end.

    Args:
        module: name of the module.
        arguments: arguments, as JSON can hold them.
        part: file of the report.
        log: file to which the process's output is added.
        cap_s: seconds after which the process is ended, with all processes that it started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", CHILD, module, json.dumps(dict(arguments)), str(part.resolve())]
    paths = [str(ROOT), str(ROOT / "engines"), str(ROOT / "runtime"), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    command += [str(os.getpid()), str(cap_s)]
    with log.open("ab") as output:
        before = output.tell()
        start = time.monotonic()
        # a session of its own is a group of its own, which can be ended as one
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    capped = False
    try:
        child.wait(cap_s)
    except subprocess.TimeoutExpired:
        capped = True
    finally:
        seconds = time.monotonic() - start
        status = _end(child)
    return Ended(status, capped, seconds, _tail(log, before))


def _end(child: subprocess.Popen[bytes]) -> int | None:
    """End a process and all that it started; return its exit status, or None where it does not go."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # they are gone already
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        return child.wait(REAPING_S)
    return None


def _tail(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")[-SAID:].strip()
