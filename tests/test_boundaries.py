"""What may import what: read off the sources, tried with modules blocked, and tried with the built wheel."""

import ast
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {
    "adacache_engines": ROOT / "engines" / "adacache_engines",
    "adacache_runtime": ROOT / "runtime" / "adacache_runtime",
    "adacache_tune": ROOT / "runtime" / "adacache_tune",
    "adacache_serve": ROOT / "runtime" / "adacache_serve",
    "adacache_export": ROOT / "adacache_export",
}
LAYERS = list(SOURCES)  # from the lowest up
OFFLINE = ("torch", "onnx", "onnx_ir", "onnxscript", "transformers", "sentencepiece", "diffusers")
OPTIONAL = ("onnxruntime", "cuda", "tensorrt", "tensorrt_rtx", "matplotlib", "polygraphy", "skimage")
WEB = (
    *("anyio", "fastapi", "python_multipart", "starlette", "uvicorn"),
    *("httpx", "opentelemetry", "prometheus_client", "s3fs", "sqlalchemy"),
)
SERVE = "adacache_serve"
FLOORS = ("device", "jobs", "http")  # of adacache_serve, from the lowest up, below what begins it and above the rest
BEGINNINGS = ("commands", "triton")
FILES = sorted((layer, path) for layer, folder in SOURCES.items() for path in folder.rglob("*.py"))
IDS = [path.relative_to(ROOT).as_posix() for _, path in FILES]


def imports(tree: ast.AST) -> Iterator[str]:
    """Names of modules that are imported anywhere in the tree; relative ones begin with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def at_import(tree: ast.Module) -> Iterator[str]:
    """Names of modules that are imported when the module is, so not in a function, nor for the type checker alone."""
    for node in tree.body:
        typing_only = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        if not (typing_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from imports(node)


def of_server(path: Path) -> bool:
    """What makes a video is there without a web framework and a database, for other servers."""
    return SERVE in path.parts and path.parent.name in ("jobs", "http")


def is_of(name: str, packages: tuple[str, ...]) -> bool:
    return name.split(".")[0] in packages


@pytest.mark.parametrize(("layer", "path"), FILES, ids=IDS)
def test_imports_point_down(layer: str, path: Path) -> None:
    """In functions, too."""
    above = (*LAYERS[LAYERS.index(layer) + 1 :], "tools", "tests")
    upward = [name for name in imports(ast.parse(path.read_text())) if is_of(name, above) or name.startswith(".")]
    assert upward == []


def floor(module: str) -> int:
    """Return the floor of a module of adacache_serve, which imports from lower ones only."""
    first, *_ = module.split(".")[1:] or [""]
    if first in FLOORS:
        return 1 + FLOORS.index(first)
    return 1 + len(FLOORS) if first in BEGINNINGS else 0


@pytest.mark.parametrize("path", [path for layer, path in FILES if layer == SERVE], ids=lambda path: path.stem)
def test_imports_inside_the_server_point_down(path: Path) -> None:
    own = floor(".".join(path.relative_to(SOURCES[SERVE].parent).with_suffix("").parts))
    needed = [name for name in imports(ast.parse(path.read_text())) if is_of(name, (SERVE,))]
    assert [name for name in needed if floor(name) > own] == []


ONLINE = [(layer, path) for layer, path in FILES if layer != "adacache_export"]


@pytest.mark.parametrize("path", [path for _, path in ONLINE], ids=[name for name in IDS if "export" not in name])
def test_the_runtime_needs_no_optional_package_to_be_imported(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert [name for name in imports(tree) if is_of(name, OFFLINE)] == []
    web = () if of_server(path) else WEB
    assert [name for name in at_import(tree) if is_of(name, (*OPTIONAL, *web))] == []


def test_argparse_lives_in_commands_alone() -> None:
    parse = {
        name
        for (_, path), name in zip(FILES, IDS, strict=True)
        if path.parent.name != "commands" and "argparse" in imports(ast.parse(path.read_text()))
    }
    assert parse == set()


def test_source_roots_are_no_packages() -> None:
    """Else the wheel would install two packages of generic names."""
    assert not (ROOT / "engines" / "__init__.py").exists()
    assert not (ROOT / "runtime" / "__init__.py").exists()


def required() -> Iterator[tuple[str, str]]:
    """Module and extra of every ``require(module, extra)`` that names both, and of graph passes, which need onnx."""
    for _, path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id == "rewritten":
                yield "onnx", ast.literal_eval(node.args[-1])
            elif node.func.id == "require":
                module, extra = node.args
                choices = (extra.body, extra.orelse) if isinstance(extra, ast.IfExp) else (extra,)
                if isinstance(module, ast.Constant) and all(isinstance(choice, ast.Constant) for choice in choices):
                    yield from ((str(ast.literal_eval(module)), ast.literal_eval(choice)) for choice in choices)


def test_the_extra_that_a_message_names_brings_the_module() -> None:
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    distributions = {
        ("onnxruntime", "gpu"): "onnxruntime-gpu",
        ("prometheus_client", "serve"): "prometheus-client",
        ("opentelemetry", "otel"): "opentelemetry-sdk",
        ("cuda", "gpu"): "cuda-bindings",
        ("skimage", "compare"): "scikit-image",
        ("huggingface_hub", "export"): "diffusers",  # brings it
    }
    found = set(required())
    assert {("onnxruntime", "cpu"), ("onnxruntime", "gpu"), ("onnx", "cpu"), ("matplotlib", "plot")} <= found
    for module, extra in found:
        brought = [re.split(r"[<>=\[; ]", line)[0] for line in project["optional-dependencies"][extra]]
        top = module.split(".")[0]
        assert distributions.get((top, extra), top) in brought, (module, extra)


BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""
MODULES = sorted(
    ".".join(("adacache_" + name.split("adacache_", 1)[1]).removesuffix(".py").removesuffix("/__init__").split("/"))
    for name in IDS
    if not name.startswith("adacache_export") and not of_server(Path(name))
)


def python(code: str, *blocked: str) -> subprocess.CompletedProcess[str]:
    whole = BLOCK.format(blocked=blocked) + code
    return subprocess.run([sys.executable, "-W", "error", "-c", whole], capture_output=True, text=True, check=False)


def test_the_runtime_is_imported_without_torch_and_everything_optional() -> None:
    done = python(f"import {', '.join(MODULES)}", *OFFLINE, *OPTIONAL, *WEB)
    assert done.returncode == 0, done.stderr
    assert {"adacache_runtime.pipeline", "adacache_runtime.commands.run", "adacache_serve.device.video_file"} <= set(
        MODULES
    )


def test_a_server_without_its_extra_says_which_it_is() -> None:
    done = python("from adacache_serve.commands.serve import main; raise SystemExit(main(['bundle']))", *WEB)
    assert done.returncode == 1
    assert done.stderr.startswith("adacache-serve: fastapi is not installed and is needed here: pip install")
    assert "[serve]" in done.stderr


def test_the_block_blocks() -> None:
    done = python("import adacache_export.convert", *OFFLINE)
    assert "No module named 'torch'" in done.stderr


GENERATE = """
import sys
sys.path.insert(0, {tests!r})
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.caching.presets import PRESETS
from tests.helpers.originals.reference import request
result = Pipeline.open({bundle!r}).generate(request(steps=4, policy=PRESETS["adacache-fast-moreg"]))
assert result.latents.shape == (2, 4, 5, 6, 10)
assert not {{"torch", "onnx"}} & sys.modules.keys()
"""


def test_a_bundle_runs_without_torch(bundle_folder: Path) -> None:
    code = GENERATE.format(tests=str(ROOT), bundle=str(bundle_folder))
    done = python(code, *OFFLINE, "matplotlib")
    assert done.returncode == 0, done.stderr


def test_a_missing_extra_is_named(bundle_folder: Path) -> None:
    code = f"from adacache_runtime.pipeline import Pipeline; Pipeline.open({str(bundle_folder)!r})"
    done = python(code, *OFFLINE, *OPTIONAL)
    assert (
        'MissingDependencyError: onnxruntime is not installed and is needed here: pip install "adacache-export[cpu]"'
        in done.stderr
    )


@pytest.mark.slow
def test_the_wheel_is_whole_without_torch(tmp_path: Path) -> None:
    """In an environment of its own, that sees of this one's packages only what the base install asks for."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info" and path.name != "bin"} == set(SOURCES)

    assert all((site / package / "py.typed").is_file() for package in SOURCES)

    # the packages of the base install, without fetching them again: this environment's, behind the wheel's
    here = Path(pytest.__file__).parent.parent
    code = BLOCK.format(blocked=(*OFFLINE, *OPTIONAL)) + (
        f"sys.path.append({str(here)!r})\n"
        f"import {', '.join(MODULES)}\n"
        f"assert all(module.__file__.startswith({str(site)!r}) for name, module in sys.modules.items()"
        " if name.startswith('adacache_'))\n"
        "from adacache_runtime.caching.presets import PRESETS\n"
        "from adacache_engines.contract.fake import FakeBackend\n"
        "print(len(PRESETS))\n"
    )
    interpreter = tmp_path / "venv" / "bin" / "python"
    done = subprocess.run(
        [interpreter, "-I", "-W", "error", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


TESTS = ROOT / "tests"
MIRRORED = {
    "engines": SOURCES["adacache_engines"],
    "export": SOURCES["adacache_export"],
    "runtime": SOURCES["adacache_runtime"],
    "serve": SOURCES["adacache_serve"],
    "tools": ROOT / "tools",
    "tune": SOURCES["adacache_tune"],
}


def test_no_test_imports_a_test() -> None:
    """Helpers neither: what tests share is in tests/helpers."""
    importing = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in TESTS.rglob("*.py")
        for name in imported_names(ast.parse(path.read_text()))
        if name.split(".")[0] == "tests" and any(part.startswith("test_") for part in name.split("."))
    }
    assert importing == set()


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported, and names that are imported from them, which may be modules, too."""
    yield from imports(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_tests_mirror_the_packages() -> None:
    """A test stands in the folder whose name is that of the package's folder that it tests."""
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")} - {Path(), Path("attacks")}
    astray = {
        folder.as_posix()
        for folder in folders
        if folder.parts[0] not in MIRRORED or not MIRRORED[folder.parts[0]].joinpath(*folder.parts[1:]).is_dir()
    }
    assert astray == set()
