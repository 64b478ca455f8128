"""Pack everything that the check needs for a machine without a package registry; ``sh run.sh`` starts it there.

The machine has ``python3``, a driver, and the Python packages that are not among the wheels. Wheels are unpacked
beside the sources and found through PYTHONPATH; nothing is installed.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adacache_engines.errors import InputError, MissingDependencyError
from adacache_engines.tensorrt.library import open_library
from tools.gpu.machine import exporter_missing
from tools.gpu.model import LARGE, PRECISIONS, ROOT, compiled, make_bundles
from tools.gpu.skeleton import strip

SOURCES = ("adacache_export", "engines", "runtime", "tools", "tests", "pyproject.toml")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
COMPILED = "fp16"  # whose plans are made here where TensorRT-RTX is installed
RUN = """#!/bin/sh
# Puts the pack together and runs the check: sh run.sh [options of gpu_check]
set -e
here=$(cd "$(dirname "$0")" && pwd)
if [ ! -e "$here/site/.complete" ]; then
    for wheel in "$here"/wheels/*.whl; do
        [ -e "$wheel" ] || continue
        python3 -m zipfile -e "$wheel" "$here/site"
    done
    mkdir -p "$here/site"
    : > "$here/site/.complete"
fi
project="$here/project"
PYTHONPATH="$project:$project/engines:$project/runtime:$here/site${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
exec python3 "$project/tools/gpu_check.py" --bundles "$here/bundles" "$@"
"""


def pack(folder: Path, wheels: Sequence[Path], bundles: Path | None = None) -> None:
    """Make the folder.

    Args:
        folder: the new folder.
        wheels: wheels of packages that the other machine lacks.
        bundles: folder of bundles that were made before; None = they are exported here.

    Raises:
        InputError: the folder exists.
        MissingDependencyError: there are no bundles, and none can be exported.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already; choose another place for the pack")
    missing = exporter_missing() if bundles is None else None
    if missing is not None:
        raise MissingDependencyError(f"a pack needs bundles, and none can be exported here: {missing}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adacache-pack-", dir=folder.parent) as name:
        made = Path(name) / "pack"
        for source in SOURCES:
            target = made / "project" / source
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, ignore=LEFT_OUT)
            else:
                shutil.copyfile(ROOT / source, target)
        (made / "wheels").mkdir()
        for wheel in wheels:
            shutil.copyfile(wheel, made / "wheels" / wheel.name)
        if bundles is None:
            (made / "bundles").mkdir()
            make_bundles(made / "bundles")
        else:
            for bundle in (*PRECISIONS, LARGE):
                shutil.copytree(bundles / bundle, made / "bundles" / bundle)
        told = _compile(made / "bundles" / COMPILED)
        if not list((made / "bundles" / LARGE).rglob("*.header")):
            strip(made / "bundles" / LARGE)
        (made / "run.sh").write_text(RUN)
        made.rename(folder)
    parts = ", ".join(f"{part.name} {_mb(part):.1f}" for part in sorted(folder.iterdir()) if part.is_dir())
    print(f"{folder}: {_mb(folder):.1f} MB ({parts})")
    print(told)
    print(f"copy it to the machine with the GPU and type: sh {folder.name}/run.sh --out results")


def _compile(folder: Path) -> str:
    try:
        library = open_library("tensorrt-rtx")
    except MissingDependencyError as error:
        return f"no plans are in it, they are built on the machine with the GPU: {error}"
    made = compiled(folder, library, workers=1)
    return f"{library.name} {library.version} plans for {folder.name}, compute capability {', '.join(made.targets)}"


def _mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
