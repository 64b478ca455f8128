"""Choose what of the project and its bundles travels: what the check needs on the other machine, and nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path

from adacache_engines.bundle.files import read_manifest, replace_manifest
from adacache_engines.bundle.locks import changing
from adacache_engines.tensorrt.plans import ENGINES
from tools.gpu.running.processes import ROOT

SOURCES = (
    "adacache_export",
    "engines/adacache_engines",
    "runtime/adacache_runtime",
    "runtime/adacache_tune",
    "tools",
    "tests/helpers",
    "pyproject.toml",
)
# the demo models, of which bundles travel; results; examples, which need a web framework
LEFT_OUT = ("tools/demo/model", "tools/demo/latte", "tools/results", "tools/examples")
MARK = "mark.gpu"  # in a file of tests that need a GPU


def copy_sources(target: Path, root: Path = ROOT) -> None:
    """Copy the packages, the tools, and the tests that need a GPU with what they stand on, into a new folder."""
    left_out = {root / path for path in LEFT_OUT}

    def ignored(folder: str, names: list[str]) -> list[str]:
        return [
            name
            for name in names
            if name == "__pycache__" or name.startswith(".") or name.endswith(".md") or Path(folder, name) in left_out
        ]

    for source in SOURCES:
        _copy(root / source, target / source, ignored)
    for test in gpu_tests(root):
        for folder in test.parents:  # pytest takes the conftest.py of each
            if (folder / "conftest.py").is_file() and folder.is_relative_to(root):
                _copy(folder / "conftest.py", target / folder.relative_to(root) / "conftest.py", ignored)
        _copy(test, target / test.relative_to(root), ignored)


def gpu_tests(root: Path = ROOT) -> list[Path]:
    """Return the files of tests that need a GPU, and so nothing but a GPU's machine can run."""
    return sorted(path for path in (root / "tests").rglob("test_*.py") if MARK in path.read_text(encoding="utf-8"))


def _copy(source: Path, target: Path, ignored: Callable[[str, list[str]], list[str]]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=ignored)
    else:
        shutil.copyfile(source, target)


def drop_plans(bundle: Path, capability: str | None) -> None:
    """Delete a bundle's plans, but for those that run on this compute capability; None = delete all."""
    with changing(bundle):
        manifest = read_manifest(bundle)
        kept = {name: plans for name, plans in manifest.plans.items() if capability in plans.targets}
        for name in manifest.plans.keys() - kept.keys():
            shutil.rmtree(bundle / ENGINES / name, ignore_errors=True)
        if kept.keys() != manifest.plans.keys():
            replace_manifest(bundle, manifest.model_copy(update={"plans": kept}))
