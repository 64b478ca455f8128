"""The public surface: which names there are, what they cost to import, and the versions that commands tell."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import adacache_runtime
from adacache_export.commands.export import main as export
from adacache_runtime.commands.run import main as run
from adacache_serve.commands.serve import main as serve
from adacache_tune.commands.calibrate import main as calibrate
from adacache_tune.commands.compare import main as compare
from adacache_tune.commands.profile import main as profile

ROOT = Path(__file__).parents[2]
NAMES = {
    *("Pipeline", "Request", "Video", "Trace"),
    *("OnnxRuntime", "TensorRT"),
    *("policy", "policies"),
    *("AdaCacheError", "InputError", "OutOfRangeError", "BundleError", "EngineError", "PolicyError"),
    *("MissingDependencyError", "NonFiniteError"),
    "__version__",
}
HEAVY = {"torch", "av", "onnx", "onnxruntime", "tensorrt", "PIL", "rich", "fastapi", "starlette", "uvicorn", "pytest"}
COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "adacache-export": export,
    "adacache-run": run,
    "adacache-serve": serve,
    "adacache-compare": compare,
    "adacache-calibrate": calibrate,
    "adacache-profile": profile,
}


def test_the_exported_names_are_these() -> None:
    assert set(adacache_runtime.__all__) == NAMES
    assert set(dir(adacache_runtime)) >= NAMES
    for name in NAMES:
        assert getattr(adacache_runtime, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'pipelines'"):
        _ = adacache_runtime.pipelines  # type: ignore[attr-defined]


def test_the_names_load_nothing_heavy() -> None:
    code = (
        "import sys, adacache_runtime as a\n"
        "[getattr(a, name) for name in a.__all__]\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_the_version_is_the_project_s() -> None:
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    assert adacache_runtime.__version__ == project["version"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_its_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        COMMANDS[name](["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"{name} {adacache_runtime.__version__}\n"


def test_every_package_says_that_it_is_typed() -> None:
    packages = [
        *(ROOT / "runtime" / name for name in ("adacache_runtime", "adacache_serve", "adacache_tune")),
        ROOT / "engines" / "adacache_engines",
        ROOT / "adacache_export",
    ]
    assert all((package / "py.typed").is_file() for package in packages)
