"""Run the tests marked ``gpu`` of one backend, and keep the outcome of each as it ends. A phase of a check."""

import os
from collections.abc import Mapping
from typing import Any

from adacache_engines.errors import MissingDependencyError, require
from tools.gpu.running.processes import ROOT
from tools.gpu.running.results import Report

BUNDLES = "ADACACHE_BUNDLES"  # variable of the environment; see tests/tools/gpu/test_gpu.py
TESTS = ROOT / "tests" / "tools" / "gpu" / "test_gpu.py"
# pytest's -k, by backend; another phase compares ONNX Runtime with the processor
CHOICES = {
    "tensorrt": "tensorrt and not rtx",
    "tensorrt-rtx": "rtx",
    "onnxruntime-cuda": "onnxruntime and not gives_what_the_cpu_gives",
}


class Outcomes:
    """A plugin of pytest that keeps the outcome of each test.

    Args:
        report: gets ``tests``: the number of tests passed, and the reasons of those that failed or were skipped.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._told: dict[str, Any] = {"passed": 0, "failed": {}, "skipped": {}}
        report.told["tests"] = self._told

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep what a phase of a test, as pytest calls its set-up, call and tear-down, adds to its outcome."""
        name = report.nodeid.split("::", 1)[-1]
        if report.failed:
            self._told["failed"][name] = _last_line(report.longreprtext)
            self._report.failed(name, self._told["failed"][name])
        elif report.skipped:
            self._told["skipped"][name] = str(report.longrepr[-1] if report.longrepr else "no reason")
        elif report.when == "call":
            self._told["passed"] += 1
        self._report.keep()


def run(arguments: Mapping[str, Any], report: Report) -> None:
    """Run the tests of ``backend`` on the bundles in the folder ``bundles``.

    Raises:
        MissingDependencyError: pytest or what the tests import is not installed.
    """
    pytest = require("pytest", "dev")
    os.environ[BUNDLES] = arguments["bundles"]
    options = ["-q", "-m", "gpu", "-k", CHOICES[arguments["backend"]], "-p", "no:cacheprovider"]
    options += ["-W", "default"]  # of libraries that nobody here chose, whose warnings are no failures
    status = pytest.main([*options, f"--rootdir={ROOT}", str(TESTS)], plugins=[Outcomes(report)])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise MissingDependencyError(f"pytest could not run {TESTS.name}: it ended with {status!r}; its log says why")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("E ")]
    return lines[0].removeprefix("E").strip() if lines else text.strip().splitlines()[-1]
