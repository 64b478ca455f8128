"""The pack as a whole: what is in it, that it stays small, and that it runs with what the other machine has."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from adacache_engines.bundle.files import open_bundle, read_manifest
from adacache_engines.bundle.manifest import PlanSet
from adacache_engines.errors import InputError
from tests.helpers.model.fake_model import write_bundle
from tools.gpu.pack import contents, packages
from tools.gpu.pack.make import pack
from tools.gpu.pack.parts import LIMIT_MB, nbytes_of
from tools.gpu.pack.unpack import unpack
from tools.gpu.phases import LARGE, PRECISIONS
from tools.gpu.running.processes import ROOT

Once = Callable[[str, Callable[[Path], object]], Path]
SOURCES_MB = 1.0  # of the part that goes first, apart from bundles and wheels
NEEDED = {name: f"{name}-1.0-py3-none-any.whl" for name in ("annotated_types", "pydantic", "typing_inspection")}
NEEDED["pydantic_core"] = "pydantic_core-1.0-cp312-cp312-manylinux_2_17_x86_64.whl"


def write_wheels(folder: Path) -> list[Path]:
    """Write wheels of the names that must be carried, each with one module that says its name."""
    folder.mkdir(parents=True)
    for name, file in NEEDED.items():
        with zipfile.ZipFile(folder / file, "w") as archive:
            archive.writestr(f"{name}.py", f"NAME = {name!r}")
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def packed(once: Once) -> Path:
    """A pack of bundles with functions of numpy instead of graphs, and empty wheels. Tests must not change it."""

    def build(folder: Path) -> None:
        bundles = folder.with_suffix(".bundles")
        for name in (*PRECISIONS, LARGE):
            write_bundle(bundles / name)
        pack(folder, write_wheels(folder.with_suffix(".wheels")), bundles)

    return once("pack-of-fakes", build)


@pytest.fixture
def unpacked(packed: Path, tmp_path: Path) -> Path:
    """The pack, put together."""
    unpack(packed / "part-1", tmp_path / "there")
    return tmp_path / "there"


def test_the_first_part_has_all_but_the_provider(packed: Path, unpacked: Path) -> None:
    assert [part.name for part in packed.iterdir()] == ["part-1"]
    assert {path.name for path in unpacked.iterdir()} == {".pack", "bundles", "project", "run.sh", "site"}
    assert {path.stem for path in (unpacked / "site").iterdir()} == set(NEEDED), "wheels are unpacked"
    assert not list((unpacked / "bundles" / LARGE).rglob("*.safetensors")), "weights are drawn there"
    for precision in PRECISIONS:
        open_bundle(unpacked / "bundles" / precision)


def test_the_sources_stay_small(packed: Path) -> None:
    assert nbytes_of(packed / "part-1") < SOURCES_MB * 1e6


def test_tests_that_need_no_gpu_stay_behind(unpacked: Path) -> None:
    project = unpacked / "project"
    tests = {path.relative_to(project).as_posix() for path in project.rglob("test_*.py")}
    assert tests == {path.relative_to(ROOT).as_posix() for path in contents.gpu_tests()}
    assert "tests/tools/gpu/test_gpu.py" in tests
    assert (project / "tests" / "conftest.py").is_file()
    for left_out in ("tests/data", "runtime/adacache_serve", "tools/demo/model", "tools/examples"):
        assert not (project / left_out).exists()


def test_a_wheel_that_must_be_carried_is_asked_for(tmp_path: Path) -> None:
    wheels = write_wheels(tmp_path / "wheels")
    packages.check_wheels(wheels)
    with pytest.raises(InputError, match=r"the wheels of pydantic, pydantic-core are missing; download .* pydantic$"):
        packages.check_wheels([wheel for wheel in wheels if "pydantic" not in wheel.name])
    for other in ("x-1.0-cp311-cp311-linux_x86_64.whl", "x.whl"):
        with pytest.raises(InputError, match=rf"^{other} is not for Python 3.12"):
            packages.check_wheels([*wheels, tmp_path / other])
    packages.check_wheels([*wheels, tmp_path / "x-1.0-cp39-abi3-linux_x86_64.whl"])


def test_what_keeps_a_pack_from_being_made(tmp_path: Path) -> None:
    wheels = write_wheels(tmp_path / "wheels")
    provider = tmp_path / "onnxruntime_gpu-1.0-cp312-cp312-linux_x86_64.whl"
    with pytest.raises(InputError, match=r"onnxruntime_gpu-1.0.* is trimmed for one GPU; add its --capability"):
        pack(tmp_path / "pack", [*wheels, provider], tmp_path / "bundles")
    with pytest.raises(InputError, match="'hopper' is no compute capability"):
        pack(tmp_path / "pack", wheels, tmp_path / "bundles", "hopper")
    with pytest.raises(InputError, match=r"the wheels of .* are missing"):
        pack(tmp_path / "pack", wheels[1:], tmp_path / "bundles")
    with pytest.raises(InputError, match="wheels exists already; choose another place"):
        pack(tmp_path / "wheels", wheels, tmp_path / "bundles")
    assert not (tmp_path / "pack").exists()


def plan_set(*targets: str) -> PlanSet:
    return PlanSet(library="tensorrt-rtx", version="1", targets=targets, precision="fp16", profiles={}, plans=())


@pytest.mark.parametrize(
    ("capability", "kept"), [("8.9", ["both"]), ("12.0", ["both", "new"]), ("9.0", []), (None, [])]
)
def test_plans_of_other_targets_stay_behind(capability: str | None, kept: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write_bundle(folder, plans={"both": plan_set("8.9", "12.0"), "new": plan_set("12.0")})
    for name in ("both", "new"):
        (folder / "engines" / name).mkdir(parents=True)
    contents.drop_plans(folder, capability)
    assert list(read_manifest(folder).plans) == kept
    assert sorted(path.name for path in (folder / "engines").iterdir()) == kept


@pytest.mark.slow
def test_the_demo_models_bundles_leave_room_in_their_part(demo_bundle: Path, tmp_path: Path) -> None:
    for name in (*PRECISIONS, LARGE):
        shutil.copytree(demo_bundle, tmp_path / "bundles" / name)
    pack(tmp_path / "pack", write_wheels(tmp_path / "wheels"), tmp_path / "bundles")
    assert nbytes_of(tmp_path / "pack" / "part-1") < 0.25 * LIMIT_MB * 1e6


# with what the other machine has

GATE = """
import sys

class Gate:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"{name} is not on the other machine", name=name)

REFUSED = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Gate())
"""
# plugins are found by their packages' metadata, which the gate does not hide
NO_PLUGINS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HYPOTHESIS_NO_PLUGINS": "1"}


def gated(code: str, unpacked: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in the pack's project, without the packages that the other machine lacks."""
    project = unpacked / "project"
    paths = [project, project / "engines", project / "runtime"]
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), **NO_PLUGINS}
    command = [sys.executable, "-c", GATE + code, ",".join(packages.refused()), *arguments]
    return subprocess.run(command, cwd=project, env=surroundings, capture_output=True, text=True)


def test_the_gate_is_closed_to_what_the_other_machine_lacks() -> None:
    """The packages named here are installed where tests run; the pack carries pydantic."""
    refused = set(packages.refused())
    assert refused >= {"av", "bs4", "fastapi", "ftfy", "onnx_ir", "polygraphy", "sqlalchemy", "tensorrt_rtx", "uvicorn"}
    assert refused.isdisjoint({"torch", "onnx", "onnxruntime", "numpy", "ml_dtypes", "pydantic", "adacache_engines"})


@pytest.mark.slow
def test_every_module_of_the_check_imports_there(unpacked: Path) -> None:
    project = unpacked / "project"
    folders = [project / "tools" / "gpu", *(project / "tools").glob("gpu_check.py")]
    files = sorted(path for folder in folders for path in ([folder] if folder.is_file() else folder.rglob("*.py")))
    modules = [".".join(path.relative_to(project).with_suffix("").parts) for path in files]
    assert {"tools.gpu_check", "tools.gpu.pytorch.recorded", "tools.gpu.measure"} <= set(modules)
    code = "import importlib\nfor name in sys.argv[1:]: print(importlib.import_module(name).__file__)"
    done = gated(code, unpacked, *modules)
    assert done.returncode == 0, done.stderr
    assert [Path(line) for line in done.stdout.splitlines()] == files, "from the pack, not from the checkout"


@pytest.mark.slow
def test_the_tests_are_collected_there(unpacked: Path) -> None:
    code = "import pytest\nsys.exit(pytest.main(sys.argv[1:]))"
    done = gated(code, unpacked, "-q", "--collect-only", "-m", "gpu", "-p", "no:cacheprovider", "tests")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_gpu.py" in done.stdout


@pytest.mark.slow
def test_a_package_that_the_other_machine_lacks_is_noticed(unpacked: Path) -> None:
    done = gated("import adacache_runtime.media.video", unpacked)
    assert "ModuleNotFoundError: av is not on the other machine" in done.stderr


@pytest.mark.slow
def test_it_starts_and_says_that_there_is_no_gpu(unpacked: Path, tmp_path: Path) -> None:
    shutil.rmtree(unpacked / "site")  # of the fakes
    surroundings = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": ""}
    done = subprocess.run(
        ["sh", str(unpacked / "run.sh"), "--out", "results"],
        cwd=tmp_path, env=surroundings, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("gpu_check: this machine has no GPU that can be used, so nothing was run or written")
    assert not (tmp_path / "results").exists()


def test_unpacking_needs_python_alone() -> None:
    tree = ast.parse((ROOT / "tools" / "gpu" / "pack" / "unpack.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)
