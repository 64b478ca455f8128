"""The libraries: their versions, the names that the fakes have from them, and their published types."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from adacache_engines.errors import MissingDependencyError
from adacache_engines.tensorrt.library import EXTRAS, LIBRARIES, MODULES, OLDEST, open_library
from tests.helpers.gpu import fake_tensorrt
from tests.helpers.gpu.fake_tensorrt import ILogger, Logger

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def install(monkeypatch: pytest.MonkeyPatch, module: str, version: str) -> None:
    fake = SimpleNamespace(__version__=version, Builder=object, ILogger=ILogger, Logger=Logger)
    monkeypatch.setitem(sys.modules, module, fake)


@pytest.mark.parametrize("version", ["10.9.0.34", "10.13.3", "9.14"])
def test_an_older_library_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    install(monkeypatch, "tensorrt", version)
    with pytest.raises(
        MissingDependencyError, match=rf"tensorrt {re.escape(version)} is installed, and 10\.14 or newer"
    ):
        open_library("tensorrt")


@pytest.mark.parametrize("version", ["10.14.1.48", "10.16", "11.0.0"])
def test_a_newer_library_is_taken(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    install(monkeypatch, "tensorrt", version)
    assert open_library("tensorrt").version == version


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_extras_ask_for_what_is_needed(library: str) -> None:
    (extra,) = (extra for name, extra in EXTRAS.items() if name == library)
    (oldest,) = (version for name, version in OLDEST.items() if name == library)
    assert f'{extra} = ["{library}>={oldest}"' in PYPROJECT.read_text(encoding="utf-8")
    assert {*OLDEST} == {*EXTRAS} == {*MODULES}


@pytest.mark.parametrize("name", ["Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "IRuntimeCache"])
def test_the_fake_has_the_names_of_the_real_one(name: str) -> None:
    api = pytest.importorskip("tensorrt_rtx")
    ours = {member for member in vars(getattr(fake_tensorrt, name)) if not member.startswith("_")}
    assert ours
    assert ours - set(dir(getattr(api, name))) == set()


@pytest.mark.parametrize(
    "name",
    [
        "DataType",
        "TensorIOMode",
        "TensorLocation",
        "ExecutionContextAllocationStrategy",
        "CudaGraphStrategy",
        "DynamicShapesKernelSpecializationStrategy",
        "EngineValidity",
        "EngineInvalidityDiagnostics",
    ],
)
def test_the_fakes_values_are_the_real_ones(name: str) -> None:
    api = pytest.importorskip("tensorrt_rtx")
    for member in getattr(fake_tensorrt, name):
        assert getattr(getattr(api, name), member.name).name == member.name


OURS = tuple(f"tensorrt/{name}.py" for name in ("backend", "contexts", "engine", "build", "refit"))
STUBS = ("tensorrt", "tensorrt_bindings")
WRONG_CALL = """
import tensorrt as trt
def wrong(context: trt.IExecutionContext) -> None:
    context.execute_async_v9(1)
"""


@pytest.mark.slow
def test_the_calls_are_those_of_the_stubs(tmp_path: Path) -> None:
    """The published stubs do not parse as they are: their parameters are called ``in``."""
    site = Path(pytest.__file__).parent.parent
    root = Path(__file__).parents[3]
    for stub in STUBS:
        if not (site / stub / "__init__.pyi").is_file():
            pytest.skip("tensorrt-stubs is not installed")
        shutil.copytree(site / stub, tmp_path / "stubs" / stub)
    whole = tmp_path / "stubs" / "tensorrt_bindings" / "tensorrt.pyi"
    text = whole.read_text().replace(", in: ", ", in_: ").replace("channel_axis: int)", "channel_axis: int = ...)")
    whole.write_text(text)
    (tmp_path / "wrong.py").write_text(WRONG_CALL)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", f"--cache-dir={tmp_path / 'cache'}"),
            *(str(root / "engines" / "adacache_engines" / name) for name in OURS),
            str(tmp_path / "wrong.py"),
        ],
        env={"MYPYPATH": f"{tmp_path / 'stubs'}:{root / 'engines'}", "PATH": ""},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stdout.splitlines() if "/stubs/" not in line and "error:" in line]
    assert [line for line in ours if any(name in line for name in OURS)] == []
    assert any("execute_async_v9" in line for line in ours), done.stdout[:2000]
