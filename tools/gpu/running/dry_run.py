"""Made-up phases that do what real ones may do, to see on any machine that a check survives them.

    python tools/gpu_check.py --dry-run [--budget SECONDS] [--out DIR]

The check with these phases is well if it comes to its end, with each phase's results and reason in the report.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from tools.gpu.running.phase import Phase
from tools.gpu.running.results import Report
from tools.gpu.running.runner import LIBRARIES

HANG_CAP_S = 2.0
FOREVER = threading.Event()  # which nobody sets


class OutOfMemoryError(RuntimeError):
    """The error that torch raises where GPU memory is short, made up."""


def finish(arguments: Mapping[str, Any], report: Report) -> None:
    """End well."""
    report.told["arguments"] = dict(arguments)


def libraries(_arguments: Mapping[str, Any], report: Report) -> None:
    """Find that a backend is missing."""
    report.told |= {"usable": ["torch-eager"], "unusable": {"tensorrt": "tensorrt is not installed"}}


def hang(_arguments: Mapping[str, Any], report: Report) -> None:
    """Keep a result, start another process, and hang in both."""
    report.told["before the hang"] = 1
    report.keep()
    subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    FOREVER.wait()


def be_killed(_arguments: Mapping[str, Any], report: Report) -> None:
    """Keep a result, and end as the kernel ends a process that takes too much memory."""
    report.told["before the kill"] = 1
    report.keep()
    os.kill(os.getpid(), signal.SIGKILL)


def crash(_arguments: Mapping[str, Any], report: Report) -> None:
    """Keep all results, and crash on the way out, as a library may in its last destructor."""
    report.told["all"] = 1
    report.keep(complete=True)
    os.abort()


def raise_error(_arguments: Mapping[str, Any], report: Report) -> None:
    """Keep a result, and raise an error."""
    report.told["before the error"] = 1
    report.keep()
    raise ValueError("a made-up error")


def contenders(_arguments: Mapping[str, Any], report: Report) -> None:
    """Have one of three contenders fail."""
    report.told["first"] = 1
    report.failed("second", OutOfMemoryError("CUDA out of memory"))
    report.told["third"] = 1


ACTIONS: Mapping[str, Callable[[Mapping[str, Any], Report], None]] = {
    action.__name__: action for action in (finish, libraries, hang, be_killed, crash, raise_error, contenders)
}


def run(arguments: Mapping[str, Any], report: Report) -> None:
    """Do what ``arguments["action"]`` says, one of :data:`ACTIONS`."""
    ACTIONS[arguments["action"]](arguments, report)


def phase(name: str, action: str, shows: str, **others: Any) -> Phase:
    """Return a made-up phase that does an action."""
    settings = {"cap_s": 60.0, "least_s": 0.0, **others}
    return Phase(name, __name__, shows=shows, arguments={"action": action}, **settings)


PHASES = (
    phase(LIBRARIES, "libraries", "a backend that is missing"),
    phase("first", "finish", "an ordinary phase"),
    phase("hang", "hang", "a phase that hangs with a process of its own", cap_s=HANG_CAP_S),
    phase("kill", "be_killed", "a phase that is killed"),
    phase("error", "raise_error", "a phase that raises an error"),
    phase("contenders", "contenders", "a contender that fails between two others"),
    phase("crash", "crash", "a process that crashes after its results"),
    phase("after-error", "finish", "a phase that needs one that failed", after=("error",)),
    phase("missing", "finish", "a phase that needs a missing backend", backends=("tensorrt",)),
    phase("late", "finish", "a phase for which the budget is too small", least_s=1e6),
    phase("last", "finish", "an ordinary phase after all of these", after=("first",)),
)
