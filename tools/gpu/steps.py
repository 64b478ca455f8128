"""Run the steps of the check as processes of their own, so that a crash of one does not end the check."""

import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# variables of the environment by which the check tells the tests what it knows; see tests/tools/gpu/test_gpu.py
BUNDLES, RTX_TARGET, NO_TARGET = "ADACACHE_BUNDLES", "ADACACHE_RTX_TARGET", "none"
SAID = 2000  # characters of a failed step's last words that are kept


def step(module: str, *arguments: str) -> dict[str, Any]:
    """Run ``python -m module arguments FILE`` and return FILE's content; ``failed`` says how it failed, if it did."""
    with tempfile.TemporaryDirectory(prefix="adacache-step-") as folder:
        file = Path(folder) / "told.json"
        ended, said, _ = _run([sys.executable, "-m", module, *arguments, str(file)], {})
        told: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if ended:
        told["failed"] = f"{module} ended with status {ended}: {said}"
    return told


def run_tests(paths: tuple[str, ...], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run tests marked ``gpu`` and count them; those that failed or were skipped are named with the reason."""
    with tempfile.TemporaryDirectory(prefix="adacache-tests-") as folder:
        file = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={file}"]
        command += ["-W", "default"]  # of libraries that nobody here chose, whose warnings are no failures
        ended, said, seconds = _run([*command, *paths], environment)
        if not file.is_file():
            return {"failed": f"pytest ended with status {ended}: {said}", "seconds": seconds}
        return {**counted(file.read_text(encoding="utf-8")), "seconds": seconds}


def counted(junit: str) -> dict[str, Any]:
    """Return the numbers of tests in pytest's report, and the reasons of those that did not pass."""
    told: dict[str, Any] = {"passed": 0, "failures": [], "skips": {}}
    for case in ET.fromstring(junit).iter("testcase"):  # noqa: S314 - same
        wrong = [entry for kind in ("failure", "error") if (entry := case.find(kind)) is not None]
        skip = case.find("skipped")
        if wrong:
            why = (wrong[0].get("message") or "").splitlines()[:1]
            told["failures"].append({"test": case.get("name"), "why": why[0] if why else "no message"})
        elif skip is not None:
            reason = skip.get("message") or "no reason"
            told["skips"][reason] = told["skips"].get(reason, 0) + 1
        else:
            told["passed"] += 1
    return told


def _run(command: list[str], environment: Mapping[str, str]) -> tuple[int, str, float]:
    """Run a command, showing its output as it comes; return exit status, last output and seconds."""
    paths = [str(ROOT), str(ROOT / "engines"), str(ROOT / "runtime"), os.environ.get("PYTHONPATH", "")]
    surroundings = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    start, said = time.perf_counter(), ""
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    with child:
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            said = (said + line)[-SAID:]
    return child.returncode, said.strip(), time.perf_counter() - start
