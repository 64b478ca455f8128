"""Phases as real processes that hang, are killed and crash, and a check that is itself killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.waiting import HANG_SECONDS
from tools.gpu.running.phase import Phase
from tools.gpu.running.processes import ROOT, run_module
from tools.gpu.running.results import BROKEN_OFF, CAPPED, DONE, FAILED, SKIPPED, read
from tools.gpu.running.runner import run_phases

pytestmark = pytest.mark.slow  # each starts processes

# A phase that holds a pipe open, and has a process of its own that does: whoever reads the pipe to its end has seen the
# end of both. It begins when the pipe has a reader.
HOLDS = """
import json, subprocess, sys, threading
def run(arguments, report):
    pipe = open(arguments["pipe"], "wb", buffering=0)
    report.told["begun"] = 1
    report.keep()
    if arguments.get("shares"):
        wait = "import threading; threading.Event().wait()"
        subprocess.Popen([sys.executable, "-c", wait], pass_fds=[pipe.fileno()])
    pipe.write(b"begun")
    threading.Event().wait()
"""
ENDS = "def run(arguments, report):\n    report.told['ended'] = 1\n"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that phases can name."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "holds.py").write_text(HOLDS)
    (folder / "ends.py").write_text(ENDS)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A named pipe."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


class Reader:
    """A thread that reads a pipe to its end."""

    def __init__(self, pipe: Path) -> None:
        self.begun, self.content = threading.Event(), b""
        self._pipe = pipe
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._pipe.open("rb", buffering=0) as file:
            while part := file.read(64):
                self.content += part
                self.begun.set()

    def ended(self) -> bool:
        """Wait until no process holds the pipe."""
        with contextlib.suppress(OSError):  # nobody reads any more
            os.close(os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK))  # for a reader that nobody has written to
        self._thread.join(HANG_SECONDS)
        return not self._thread.is_alive()


@pytest.fixture
def reader(pipe: Path) -> Iterator[Reader]:
    yield Reader(pipe)


def holds(pipe: Path, cap_s: float, shares: bool = False) -> Phase:
    return Phase("holds", "holds", cap_s, 0.0, "a hang", {"pipe": str(pipe), "shares": shares})


def test_a_phase_that_hangs_is_ended_with_all_that_it_started(
    modules: Path, tmp_path: Path, pipe: Path, reader: Reader
) -> None:
    assert modules
    phases = (holds(pipe, 3.0, shares=True), Phase("ends", "ends", 60.0, 0.0, "more"))
    run_phases(phases, tmp_path / "records", 1e9)
    records = read(tmp_path / "records")
    assert records["holds"]["status"] == CAPPED
    assert reader.ended()
    assert records["ends"]["status"] == DONE
    if reader.content:  # a slow machine may not have come so far, and is ended all the same
        assert records["holds"]["told"] == {"begun": 1}
        assert "in run" in (tmp_path / "records" / "holds.log").read_text(), "where each of its threads was"


def test_the_results_of_a_check_that_is_killed_stay_and_a_second_run_continues(
    modules: Path, tmp_path: Path, pipe: Path, reader: Reader
) -> None:
    assert modules
    records = tmp_path / "records"
    code = (
        "import sys; from pathlib import Path; from tools.gpu.running.phase import Phase\n"
        "from tools.gpu.running.runner import run_phases\n"
        "run_phases([Phase('ends', 'ends', 600.0, 0.0, 'it'),"
        " Phase('holds', 'holds', 600.0, 0.0, 'a hang', {'pipe': sys.argv[1]})], Path(sys.argv[2]), 1e9)"
    )
    check = subprocess.Popen([sys.executable, "-c", code, str(pipe), str(records)], cwd=ROOT)
    assert reader.begun.wait(HANG_SECONDS)
    check.kill()
    check.wait(HANG_SECONDS)
    if sys.platform == "linux":
        assert reader.ended(), "the phase does not outlive the check"
    found = read(records)
    assert [(name, one["status"]) for name, one in found.items()] == [("ends", DONE), ("holds", BROKEN_OFF)]
    assert (found["ends"]["told"], found["holds"]["told"]) == ({"ended": 1}, {"begun": 1})
    told: list[dict[str, Any]] = []
    phases = [Phase(name, "ends", 60.0, 0.0, "it") for name in ("ends", "holds")]
    run_phases(phases, records, 1e9, on_record=told.append)
    assert [one["phase"] for one in told] == ["holds"], "what is done is not run again"
    assert read(records)["holds"]["earlier"][0]["told"] == {"begun": 1}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("raise ValueError('made up')", 1, "ValueError: made up"),
        ("import os; print('last words', flush=True); os.abort()", -signal.SIGABRT, "last words"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import sys; sys.exit(7)", 7, ""),
        ("import torch_that_is_not_there", 1, "No module named 'torch_that_is_not_there'"),
    ],
)
def test_how_a_process_ended(modules: Path, tmp_path: Path, body: str, status: int, words: str) -> None:
    lines = ("def run(arguments, report):", "report.told['part'] = 1", "report.keep()", body)
    (modules / "breaks.py").write_text("\n    ".join(lines))
    part = tmp_path / "it.part.json"
    ended = run_module("breaks", {}, part, tmp_path / "it.log", HANG_SECONDS)
    assert (ended.status, ended.capped) == (status, False)
    assert words in ended.said
    kept = json.loads(part.read_text())
    assert (kept["told"], kept["complete"]) == ({"part": 1}, False)


def test_a_process_says_only_what_is_its_own(modules: Path, tmp_path: Path) -> None:
    (modules / "prints.py").write_text("def run(arguments, report):\n    print(arguments['word'])\n")
    said = [run_module("prints", {"word": word}, tmp_path / "p", tmp_path / "log", HANG_SECONDS).said for word in "ab"]
    assert said == ["a", "b"]
    assert (tmp_path / "log").read_text() == "a\nb\n"


def test_a_dry_run_survives_all_its_phases(tmp_path: Path, run_check: Callable[..., int]) -> None:
    assert run_check("--dry-run", "--out", str(tmp_path)) == 1
    records = read(tmp_path / "phases")
    assert {name: one["status"] for name, one in records.items()} == {
        "libraries": DONE,
        "first": DONE,
        "hang": CAPPED,
        "kill": FAILED,
        "error": FAILED,
        "contenders": DONE,
        "crash": DONE,
        "after-error": SKIPPED,
        "missing": SKIPPED,
        "late": SKIPPED,
        "last": DONE,
    }
    assert records["contenders"]["told"] == {"first": 1, "third": 1}
    assert records["contenders"]["failures"][0]["why"] == "OutOfMemoryError: CUDA out of memory"
    report = (tmp_path / "gpu.md").read_text()
    assert "| kill | failed |" in report
    assert "ValueError: a made-up error" in report


@pytest.fixture
def run_check() -> Callable[..., int]:
    """Runs the command in a process of its own; gives its exit status."""

    def run(*arguments: str) -> int:
        command = [sys.executable, "tools/gpu_check.py", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True).returncode

    return run


def test_the_check_starts_where_no_package_is_installed() -> None:
    """The check starts without packages, so that it can name the missing ones."""
    paths = [str(ROOT), str(ROOT / "engines"), str(ROOT / "runtime")]
    code = (
        f"import sys; sys.path[:0] = {paths}; from tools import gpu_check\n"
        "assert gpu_check.main(['--plan']) == 0\n"
        "assert not [name for name in ('numpy', 'pydantic', 'torch', 'onnxruntime', 'cuda') if name in sys.modules]"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| torch-recorded-fp16 " in done.stdout
