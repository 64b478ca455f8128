"""tools/gpu_check.py without a GPU: its phases, what it reports and refuses."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.errors import MissingDependencyError
from tools import gpu_check
from tools.gpu import gpu_tests, libraries
from tools.gpu.phases import BACKENDS, LARGE, MACHINE, PRECISIONS, Setup, phases
from tools.gpu.running.phase import Phase
from tools.gpu.running.results import Report, read, write_json

GPU = {"name": "Some GPU", "capability": "9.0", "memory_mb": 1.0, "multiprocessors": 1, "driver": "1", "runtime": "1"}

# the phases


def test_the_phases_are_in_the_order_that_keeps_most() -> None:
    names = [phase.name for phase in phases(Setup(Path("r"), Path("w"), Path("b")))]
    assert [name for name in names if "tensorrt" not in name] == [
        *("bindings", "scenarios", "scenarios-rest", "libraries"),
        *("onnxruntime-cuda-fp32", "onnxruntime-cuda-fp16", "onnxruntime-cuda-bf16", "torch-recorded-fp16", "model"),
        *("torch-480p-2s", "torch-720p-2s", "onnxruntime-480p-2s", "onnxruntime-720p-2s"),
        "tests-onnxruntime-cuda",
        *("eager-480p-2s", "eager-720p-2s", "compile-480p-2s", "compile-720p-2s"),
    ]


def test_every_need_is_met_by_an_earlier_phase_or_a_known_backend() -> None:
    done: set[str] = set()
    for phase in phases(Setup(Path("r"), Path("w"))):
        assert set(phase.after) <= done
        assert set(phase.backends) <= set(BACKENDS)
        assert 0 < phase.least_s <= phase.cap_s
        assert json.loads(json.dumps(phase.arguments)) == phase.arguments
        assert phase.name not in done
        done.add(phase.name)


def test_a_quarter_of_an_hour_is_enough_without_tensorrt_whatever_hangs() -> None:
    """Each phase can start, though all before it took all that they may."""
    of_one = [one for one in phases(Setup(Path("r"), Path("w"), Path("b"))) if "tensorrt" not in one.name]
    assert sum(phase.least_s for phase in of_one) < 0.5 * 15 * 60


# what is there, and what is not


def test_what_cannot_be_had_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing() -> None:
        raise MissingDependencyError("tensorrt is not installed")

    def broken() -> None:
        raise OSError("libcudart.so: cannot open")

    checks = {**dict.fromkeys(BACKENDS, lambda: None), "tensorrt": missing, "torch-compile": broken}
    monkeypatch.setattr(libraries, "CHECKS", checks)
    report = Report(tmp_path / "libraries.part.json")
    libraries.run({}, report)
    assert report.told == {
        "usable": ["tensorrt-rtx", "onnxruntime-cuda", "torch-recorded", "torch-eager"],
        "unusable": {"tensorrt": "tensorrt is not installed", "torch-compile": "libcudart.so: cannot open"},
    }


def test_here_nothing_needs_a_gpu_to_be_looked_at() -> None:
    assert libraries.unusable("tensorrt-rtx") is None
    assert "CUDAExecutionProvider" in str(libraries.unusable("onnxruntime-cuda"))
    assert "sees no GPU" in str(libraries.unusable("torch-eager"))


def test_no_time_is_spent_on_a_gpu_that_tensorrt_rtx_does_not_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "gpu_target", lambda: "9.0")
    why = libraries.unusable("tensorrt-rtx")
    assert why is not None
    assert why.endswith("compiles for compute capability 7.5, 8.0, 8.6, 8.9, 12.0, 12.1; this GPU has 9.0")
    monkeypatch.setattr(libraries, "gpu_target", lambda: "8.9")
    assert libraries.unusable("tensorrt-rtx") is None


# the tests marked gpu


@pytest.mark.slow  # pytest in pytest
@pytest.mark.parametrize(("backend", "count"), [("tensorrt-rtx", 17), ("tensorrt", 17), ("onnxruntime-cuda", 5)])
def test_gpu_tests_are_skipped_here_and_say_so(
    backend: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report(tmp_path / "tests.part.json")
    monkeypatch.setenv(gpu_tests.BUNDLES, "nowhere")
    gpu_tests.run({"backend": backend, "bundles": "nowhere"}, report)
    told = report.told["tests"]
    assert (told["passed"], told["failed"]) == (0, {})
    assert len(told["skipped"]) == count
    assert all("needs a GPU: CUDA failed" in reason for reason in told["skipped"].values())


def test_outcomes_of_tests_are_kept(tmp_path: Path) -> None:
    class Result:
        def __init__(self, name: str, when: str, outcome: str, longrepr: Any = None) -> None:
            self.nodeid, self.when, self.longrepr = f"tests/test_gpu.py::{name}", when, longrepr
            self.passed, self.failed, self.skipped = (outcome == one for one in ("passed", "failed", "skipped"))
            self.longreprtext = str(longrepr)

    report = Report(tmp_path / "tests.part.json")
    plugin = gpu_tests.Outcomes(report)
    for result in (
        Result("a[x]", "setup", "passed"),
        Result("a[x]", "call", "passed"),
        Result("b", "setup", "passed"),
        Result("b", "call", "failed", "> assert 1 == 2\nE   assert 1 == 2\nfile.py:7: AssertionError"),
        Result("c", "setup", "skipped", ("file.py", 3, "Skipped: no GPU")),
    ):
        plugin.pytest_runtest_logreport(result)
    assert report.told["tests"] == {
        "passed": 1,
        "failed": {"b": "assert 1 == 2"},
        "skipped": {"c": "Skipped: no GPU"},
    }
    kept = json.loads((tmp_path / "tests.part.json").read_text())
    assert kept["failures"] == [{"what": "b", "why": "assert 1 == 2"}]


# the command


@pytest.mark.slow  # a process
def test_the_command_says_that_there_is_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told.startswith("gpu_check: this machine has no GPU that can be used, so nothing was run or written: CUDA")
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "480p"], "profile '480p' is not SIZE:LENGTH"),
        (["--size", "240p..480p:2s"], "is a range; a benchmark needs one size"),
        (["--wheel", "x.whl"], "--wheel belongs to --pack"),
        (["--pack", "p", "--wheel", "x.whl"], "x.whl is not a wheel"),
        (["--capability", "9.0"], "--capability belongs to --pack"),
        (["--only", "jax"], "no phase is called jax; known: bindings, scenarios,"),
        (["--budget", "0"], "a budget of 0 seconds is not possible"),
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


def test_an_overview_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--plan", "--out", str(tmp_path / "out"), "--size", "64x64:1f"]) == 0
    told = capsys.readouterr().out
    assert "| torch-64x64-1f " in told
    assert "480p" not in told
    assert not (tmp_path / "out").exists()


def test_a_phase_that_is_asked_for_brings_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--plan", "--out", str(tmp_path), "--only", "eager-480p"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:-2]
    assert [line.split("|")[2].strip() for line in lines] == ["machine", "bundles", "model", "eager-480p-2s"]


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs the command on a made-up machine with made-up phases; gives its status and its records."""

    def check(
        *arguments: str, told: Mapping[str, Mapping[str, Any]], machine: Mapping[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        def made_up(asked: list[Phase], folder: Path, budget_s: float, on_record: Any = lambda _: None) -> None:
            for phase in asked:
                results = machine if phase == MACHINE else told.get(phase.name, {})
                record = {"phase": phase.name, "shows": "It", "status": "done", "arguments": {}, "began": 1.0}
                record |= {"budget_s": budget_s, "told": results.get("told", results)} | results
                write_json(folder / f"{phase.name}.json", record)
                on_record(record)

        monkeypatch.setattr(gpu_check, "run_phases", made_up)
        for name in (*PRECISIONS, LARGE):
            (tmp_path / "bundles" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "bundles" / name / "manifest.json").touch()
        out = tmp_path / "out"
        status = gpu_check.main(["--bundles", str(tmp_path / "bundles"), "--out", str(out), *arguments])
        return status, read(out / "phases")

    return check


def test_all_phases_run_and_the_report_is_of_all(checked: Callable[..., Any], tmp_path: Path) -> None:
    status, records = checked(told={}, machine={"told": {"gpu": GPU}})
    assert status == 0
    assert set(records) == {phase.name for phase in (MACHINE, *phases(Setup(Path("r"), Path("w"), Path("b"))))}
    report = (tmp_path / "out" / "gpu.md").read_text()
    assert "Some GPU" in report
    assert "| compile-720p-2s | done |" in report
    assert json.loads((tmp_path / "out" / "gpu.json").read_text())["phases"] == records


def test_what_fails_makes_the_check_fail(checked: Callable[..., Any], tmp_path: Path) -> None:
    failed = {"told": {}, "failures": [{"what": "torch-eager", "why": "RuntimeError: no"}]}
    machine = {"told": {"gpu": GPU}}
    assert checked(told={"model": {"told": {}, "status": "skipped"}}, machine=machine)[0] == 0
    assert checked(told={"eager-480p-2s": failed}, machine=machine)[0] == 1
    assert "- torch-eager: RuntimeError: no" in (tmp_path / "out" / "gpu.md").read_text()


def test_results_of_two_gpus_do_not_mix(checked: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    checked(told={}, machine={"told": {"gpu": GPU}})
    status, records = checked(told={}, machine={"told": {"gpu": {**GPU, "name": "Another"}}})
    assert status == 1
    assert "has results of another GPU, Some GPU; choose another folder with --out" in capsys.readouterr().err
    assert records["machine"]["told"]["gpu"]["name"] == "Some GPU"


def test_the_report_is_written_from_what_is_there(checked: Callable[..., Any], tmp_path: Path) -> None:
    checked(told={}, machine={"told": {"gpu": GPU}})
    out = tmp_path / "out"
    (out / "gpu.md").unlink()
    for file in (out / "phases").glob("eager-*.json"):
        file.unlink()
    assert gpu_check.main(["--report", "--out", str(out)]) == 0
    report = (out / "gpu.md").read_text()
    assert "| model | done |" in report
    assert "eager" not in report
