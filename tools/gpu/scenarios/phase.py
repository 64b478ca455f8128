"""The phases that run scenarios of the CUDA device on the real runtime, and keep the outcome of each as it ends."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adacache_engines.errors import require
from tools.gpu.running.results import Report, read
from tools.gpu.scenarios.registry import SCENARIOS

BEGUN = "begun"  # the outcome of a scenario during which its process ended
PASSED = "passed"


def run(arguments: Mapping[str, Any], report: Report, api: Any = None) -> None:
    """Run scenarios, and keep the outcome and the seconds of each.

    Args:
        arguments: ``only`` or ``without``: names of scenarios; ``behind``: name of a phase in the folder ``records``;
            what it has settled is not run again.
        report: gets the scenarios' outcomes.
        api: object that stands in for ``cuda.bindings.runtime``; None = the real one.
    """
    api = require("cuda.bindings.runtime", "gpu") if api is None else api
    only, without = arguments.get("only", list(SCENARIOS)), set(arguments.get("without", ()))
    if "behind" in arguments:
        without |= settled(read(Path(arguments["records"])).get(arguments["behind"], {}))
    found = report.told["scenarios"] = {}
    for name in only:
        if name in without:
            continue
        found[name] = {"outcome": BEGUN}
        report.keep()
        start = time.perf_counter()
        try:
            SCENARIOS[name](api)
            outcome = PASSED
        except Exception as error:
            outcome = "failed"
            report.failed(name, error)
        found[name] = {"outcome": outcome, "seconds": time.perf_counter() - start}
        report.keep()


def settled(record: Mapping[str, Any]) -> set[str]:
    """Return the scenarios of a phase that need not run again: those that passed, and the first that did not.

    The others may have failed of what the first one had done to the process, or were not reached.
    """
    outcomes = {name: one["outcome"] for name, one in record.get("told", {}).get("scenarios", {}).items()}
    first = [name for name, outcome in outcomes.items() if outcome != PASSED][:1]
    return {name for name, outcome in outcomes.items() if outcome == PASSED}.union(first)
