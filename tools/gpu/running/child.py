"""The process of a phase: ``python -m tools.gpu.running.child MODULE ARGUMENTS PART PARENT CAP``.

It does not outlive the check, and shortly before its cap it prints where each of its threads is.
"""

import ctypes
import faulthandler
import importlib
import json
import os
import signal
import sys
from pathlib import Path

from tools.gpu.running.results import Report

PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent ends
LAST_WORDS = 0.9  # share of the cap after which a phase that still runs prints its stacks


def main(module: str, arguments: str, part: str, parent: str, cap_s: str) -> None:
    """Run ``module.run(arguments, report)``.

    Args:
        module: name of the module.
        arguments: arguments as JSON.
        part: file of the report.
        parent: process id of the check.
        cap_s: seconds after which the check will end this process.
    """
    _end_with(int(parent))
    faulthandler.enable()
    faulthandler.dump_traceback_later(LAST_WORDS * float(cap_s), exit=False)
    report = Report(Path(part))
    try:
        importlib.import_module(module).run(json.loads(arguments), report)
    except Exception as error:
        report.failed("the phase", error)
        sys.exit(1)
    report.keep(complete=True)
    faulthandler.cancel_dump_traceback_later()


def _end_with(parent: int) -> None:
    """Have this process killed when its parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the check has ended already")


if __name__ == "__main__":
    main(*sys.argv[1:])
