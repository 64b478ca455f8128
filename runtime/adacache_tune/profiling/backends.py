"""The back ends that can be profiled, by name."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from adacache_engines.bundle.files import Bundle
from adacache_engines.errors import EngineError, InputError, require
from adacache_engines.onnxruntime.engine import OrtBackend
from adacache_engines.tensorrt.library import LIBRARIES
from adacache_tune.profiling.ort_target import OrtTarget
from adacache_tune.profiling.targets import Target
from adacache_tune.profiling.trt_target import TrtTarget

PLAIN = "onnxruntime-plain"
BACKENDS = ("onnxruntime", PLAIN, *LIBRARIES)


def open_target(bundle: Bundle, choice: str, provider: str, threads: int, sizes: Mapping[str, int]) -> Target:
    """
    Raises:
        InputError: no such back end or provider.
        MissingDependencyError: it is not installed.
        EngineError: there is no GPU, or the bundle has no plans for it.
        OutOfRangeError: the plans were not built for these sizes.
    """
    check_names([choice])
    if choice in LIBRARIES:
        return TrtTarget(bundle, choice, sizes)
    return OrtTarget(OrtBackend(bundle.folder, provider, threads, rewrites=choice != PLAIN))


def check_names(choices: Sequence[str]) -> None:
    """Checks names of back ends, and has Polygraphy use the right one of the two TensorRT libraries.

    Raises:
        InputError: a name is unknown, or both libraries are asked for: Polygraphy takes one a process.
        MissingDependencyError: Polygraphy is not installed.
        EngineError: Polygraphy uses the other library in this process already.
    """
    unknown = [choice for choice in choices if choice not in BACKENDS]
    if unknown:
        raise InputError(f"backend {', '.join(unknown)} is unknown; known: {', '.join(BACKENDS)}")
    config: Any = require("polygraphy.config", "profile")
    libraries = {choice for choice in choices if choice in LIBRARIES}
    if len(libraries) > 1:
        raise InputError(f"{' and '.join(sorted(libraries))} cannot run in one process; compare each with onnxruntime")
    if libraries:
        rtx = libraries == {"tensorrt-rtx"}
        if bool(config.USE_TENSORRT_RTX) != rtx and "polygraphy.datatype" in sys.modules:
            raise EngineError("Polygraphy already uses the other TensorRT library in this process; start a new one")
        config.USE_TENSORRT_RTX = rtx  # before any other of its modules is loaded
