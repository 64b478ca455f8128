"""tools/gpu_check.py without a GPU: what it skips, runs, reports and refuses."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.errors import InputError, MissingDependencyError
from tests.helpers.gpu_check_result import RESULT
from tools import gpu_check
from tools.gpu import attempt, machine, steps
from tools.gpu.model import LARGE, PRECISIONS

# what is there, and what is not


def test_what_cannot_be_had_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingDependencyError("tensorrt is not installed")

    def broken() -> None:
        raise OSError("libcudart.so: cannot open")

    checks = {**dict.fromkeys(machine.BACKENDS, lambda: None), "tensorrt": missing, "torch-compile": broken}
    monkeypatch.setattr(machine, "CHECKS", checks)
    usable, skipped = machine.available()
    assert usable == ["tensorrt-rtx", "onnxruntime-cuda", "torch-eager"]
    assert skipped == {"tensorrt": "tensorrt is not installed", "torch-compile": "libcudart.so: cannot open"}
    assert machine.available(("torch-eager",))[0] == ["torch-eager"]
    with pytest.raises(InputError, match=r"backend jax is unknown; known: tensorrt-rtx"):
        machine.available(("jax",))


def test_here_nothing_needs_a_gpu_to_be_looked_at() -> None:
    usable, skipped = machine.available()
    assert "tensorrt-rtx" in usable
    assert "has no CUDAExecutionProvider" in skipped["onnxruntime-cuda"]
    assert "sees no GPU" in skipped["torch-eager"]


def test_no_optional_package_is_needed_to_start() -> None:
    """Nor by any of the steps: what is missing is skipped, and no machine has everything."""
    modules = ("gpu_check", "gpu.attempt", "gpu.model", "gpu.benchmark")
    code = (
        "import sys; optional = ('torch', 'onnx', 'onnxruntime', 'onnx_ir', 'cuda', 'tensorrt', 'tensorrt_rtx')\n"
        "sys.modules.update(dict.fromkeys(optional))\n"
        + "".join(f"import tools.{module}\n" for module in modules)
        + "from tools.gpu.machine import available; print(available()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=steps.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("capability", "tried"),
    [("8.9", []), ("12.1", []), ("9.0", ["current", "8.9"]), ("10.0", ["current", "8.9"]), ("6.1", ["current"])],
)
def test_what_is_tried_on_a_gpu(capability: str, tried: list[str]) -> None:
    assert attempt.attempts(capability) == tried


# steps


def test_tests_are_counted_and_named() -> None:
    cases = """<testcase name="a"/><testcase name="b"><failure message="assert 1&#10;more"/></testcase>
    <testcase name="c"><skipped message="no GPU"/></testcase><testcase name="d"><skipped message="no GPU"/></testcase>
    <testcase name="e"><error message="fixture"/></testcase>"""
    assert steps.counted(f"<testsuites><testsuite>{cases}</testsuite></testsuites>") == {
        "passed": 1,
        "failures": [{"test": "b", "why": "assert 1"}, {"test": "e", "why": "fixture"}],
        "skips": {"no GPU": 2},
    }


def test_gpu_tests_are_skipped_here_and_say_so() -> None:
    told = steps.run_tests(gpu_check.TESTS, {})
    assert told["passed"] == 0
    assert told["failures"] == []
    assert all("needs a GPU: CUDA failed" in reason for reason in told["skips"])


def test_a_step_that_ends_early_leaves_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks.py").write_text(
        "import os, pathlib, sys\npathlib.Path(sys.argv[2]).write_text('{\"part\": 1}')\n"
        "print('last words of', sys.argv[1], flush=True)\nos.abort()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told = steps.step("breaks", "it")
    assert told["part"] == 1
    assert told["failed"] == "breaks ended with status -6: last words of it"


# the command


def test_the_command_says_that_there_is_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "480p"], "profile '480p' is not SIZE:LENGTH"),
        (["--size", "240p..480p:2s"], "is a range; a benchmark needs one size"),
        (["--wheel", "x.whl"], "--wheel belongs to --pack"),
        (["--pack", "p", "--wheel", "x.whl"], "x.whl is not a wheel"),
        (["--capability", "9.0"], "--capability belongs to --pack"),
        (["--backend", "jax"], "invalid choice: 'jax'"),
        (["--bundles", "nowhere"], "nowhere has no bundle fp32, fp16, bf16, xl2"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_pack_does_not_replace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--pack", str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs the command on a made-up GPU with made-up steps; gives its status and what it wrote."""

    def check(*arguments: str, told: Mapping[str, Any], capability: str = "9.0") -> tuple[int, dict[str, Any]]:
        asked: list[tuple[str, ...]] = []

        def made_up(module: str, *given: str) -> Any:
            asked.append((module, *given))
            answer = told[module]
            return answer(*given) if callable(answer) else answer

        gpu = machine.Gpu("Some GPU", capability, 1.0, 1, "13.0", "13.0")
        monkeypatch.setattr(gpu_check, "find_gpu", lambda: gpu)
        monkeypatch.setattr(gpu_check, "step", made_up)
        monkeypatch.setattr(gpu_check, "run_tests", lambda _paths, given: {**told["tests"], "given": dict(given)})
        monkeypatch.setattr(gpu_check, "available", lambda _: (["tensorrt-rtx", "torch-eager"], {"tensorrt": "no"}))
        out = tmp_path / "out"
        for name in (*PRECISIONS, LARGE):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "manifest.json").touch()
        status = gpu_check.main(["--bundles", str(tmp_path), "--out", str(out), *arguments])
        assert (out / "gpu.md").read_text().startswith("# GPU check")
        return status, {**json.loads((out / "gpu.json").read_text()), "asked": asked}

    return check


PASSED = {"passed": 1, "failures": [], "skips": {}, "seconds": 1.0}
MODEL: Any = RESULT["model"]


def test_an_unnamed_gpu_is_tried_and_what_worked_is_taken(checked: Callable[..., Any]) -> None:
    told = {
        "tools.gpu.attempt": lambda _folder, how: {"runs": how == "8.9", "difference": 0.1},
        "tests": PASSED,
        "tools.gpu.model": MODEL,
        "tools.gpu.benchmark": {},
    }
    status, result = checked(told=told)
    assert status == 0
    assert [(one["how"], one["runs"]) for one in result["attempts"]] == [("current", False), ("8.9", True)]
    assert result["tests"]["given"]["ADACACHE_RTX_TARGET"] == "8.9"
    assert json.loads(result["asked"][2][1])["taken"] == "8.9"
    runs = [json.loads(given) for module, given in result["asked"][3:]]
    assert [run["size"] for run in runs] == list(gpu_check.SIZES)
    assert all(run["targets"] == {"tensorrt-rtx": "8.9"} for run in runs)


def test_a_library_that_does_not_run_is_left_out(checked: Callable[..., Any]) -> None:
    told = {
        "tools.gpu.attempt": {"failed": "tools.gpu.attempt ended with status -11"},
        "tests": PASSED,
        "tools.gpu.model": MODEL,
        "tools.gpu.benchmark": {},
    }
    status, result = checked("--quick", told=told)
    assert status == 0
    assert {"what": "tensorrt-rtx", "why": "does not run on compute capability 9.0"} in result["skipped"]
    assert result["tests"]["given"]["ADACACHE_RTX_TARGET"] == "none"
    (run,) = [json.loads(given) for module, *_, given in result["asked"] if module == "tools.gpu.benchmark"]
    assert (run["backends"], run["steps"]) == (["torch-eager"], gpu_check.QUICK_STEPS)


def test_what_breaks_off_is_reported_and_fails(checked: Callable[..., Any]) -> None:
    told: dict[str, Any] = {"tests": PASSED, "tools.gpu.model": MODEL}
    told["tools.gpu.benchmark"] = lambda given: {"failed": "ended"} if "720p" in given else {}
    status, result = checked(told=told, capability="8.9")
    assert status == 1
    assert result["attempts"] == []
    assert result["benchmark"] == {"480p:2s": {}, "720p:2s": {"failed": "ended"}}
    told["tools.gpu.benchmark"] = {"calls": {"tflop": 1.0, "backends": {}}}
    assert checked(told=told, capability="8.9")[0] == 1, "nothing was measured"
    told["tools.gpu.model"] = {"failed": "no memory"}
    assert "benchmark" not in checked("--only", "benchmark", told=told, capability="8.9")[1]
    told["tests"] = {**PASSED, "failures": [{"test": "x", "why": "y"}]}
    status, result = checked("--only", "tests", told=told, capability="8.9")
    assert (status, "model" in result) == (1, False)
