"""Try whether TensorRT-RTX runs on a GPU that is not among the targets that it names, such as Hopper (9.0).

The library says nothing about it, so it is tried on purpose: with plans for the nearest named target below, and with
plans built for the GPU that is there. Each attempt is a process of its own, since a library may end its process:
``python -m tools.gpu.attempt BUNDLE HOW FILE`` with HOW a target or ``current``.
"""

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from adacache_engines.bundle.files import open_bundle
from adacache_engines.bundle.manifest import Library
from adacache_engines.errors import AdaCacheError, InputError, MissingDependencyError
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_engines.tensorrt.backend import TrtBackend
from adacache_engines.tensorrt.library import CURRENT, TARGETS, open_library
from adacache_runtime.caching.policies.never import NeverReuse
from adacache_runtime.pipeline import Pipeline
from tools.gpu.model import compiled, run_target
from tools.gpu.requests import small_request

STEPS = 4
LIBRARY: Library = "tensorrt-rtx"


def named(capability: str) -> bool:
    """Whether the library names this compute capability among its targets."""
    return capability in TARGETS


def nearest(capability: str) -> str | None:
    """Return the next lower target that is named, since a GPU may be able to run kernels of lower capabilities."""

    def number(target: str) -> tuple[int, ...]:
        return tuple(map(int, target.split(".")))

    below = [target for target in TARGETS if target != CURRENT and number(target) < number(capability)]
    return max(below, key=number, default=None)


def attempts(capability: str) -> list[str]:
    """Return the attempts to make, the best first; none where the library names the GPU."""
    target = nearest(capability)
    return [] if named(capability) else [CURRENT, *([target] if target else [])]


def attempt(folder: Path, how: str) -> dict[str, Any]:
    """Make a short generation, and compare it with ONNX Runtime's on the CPU where that is installed."""
    library = open_library(LIBRARY)
    with tempfile.TemporaryDirectory(prefix="adacache-attempt-") as name:
        work = Path(name) / "bundle"
        shutil.copytree(folder, work, ignore=shutil.ignore_patterns("runtime.cache"))
        try:
            made = compiled(work, library, taken=how)
            bundle = open_bundle(work)
            request = small_request(bundle, STEPS, NeverReuse())
            backend = TrtBackend(bundle, library, target=run_target(LIBRARY, how))
            given = Pipeline(bundle, backend).generate(request).latents
        except AdaCacheError as error:
            return {"runs": False, "why": str(error)}
        told: dict[str, Any] = {"runs": bool(np.isfinite(given).all()), "targets": list(made.targets)}
        with contextlib.suppress(MissingDependencyError, InputError):  # without ONNX Runtime there is no comparison
            wanted = Pipeline(bundle, OrtBackend(work)).generate(request).latents
            told["difference"] = float(np.abs(given - wanted).max())
        return told


def main(folder: str, how: str, file: str) -> None:
    Path(file).write_text(json.dumps(attempt(Path(folder), how)))


if __name__ == "__main__":
    main(*sys.argv[1:])
