"""Choice of the backends that are profiled, and how each becomes a target."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adacache_engines.backends import BACKENDS, backend_from_texts, check_name
from adacache_engines.bundle.files import Bundle
from adacache_engines.contract.engine import BackendConfig
from adacache_engines.contract.options import options_of
from adacache_engines.errors import EngineError, InputError, require
from adacache_engines.onnxruntime.backend import OnnxRuntime, OrtBackend
from adacache_engines.tensorrt.backend import TensorRT
from adacache_tune.profiling.bound_target import BoundTarget
from adacache_tune.profiling.ort_target import OrtTarget
from adacache_tune.profiling.targets import Target
from adacache_tune.profiling.trt_target import TrtTarget

PLAIN = "-plain"  # after onnxruntime's name: graphs as they were exported, to compare them with the rewritten ones


def open_target(bundle: Bundle, backend: BackendConfig, sizes: Mapping[str, int]) -> Target:
    """Open a backend for profiling.

    Args:
        bundle: the opened bundle.
        backend: the chosen backend.
        sizes: sizes of the dynamic axes, at which engines will run.

    Raises:
        InputError: the machine or the library cannot do what the backend's settings ask for.
        MissingDependencyError: the backend's library is not installed.
        EngineError: there is no GPU, or the bundle has no plans for it.
        OutOfRangeError: the plans were not built for these sizes.
    """
    if isinstance(backend, TensorRT):
        return TrtTarget(bundle, backend, sizes)
    opened = backend.open(bundle)
    return OrtTarget(opened) if isinstance(opened, OrtBackend) else BoundTarget(opened)


def compared_backends(choices: Sequence[str], texts: Mapping[str, str]) -> dict[str, BackendConfig]:
    """Return the backends that a comparison names; each takes those of the options that it has.

    Args:
        choices: names of backends, ``onnxruntime-plain`` among them.
        texts: options of backends, as text.

    Raises:
        InputError: a backend is unknown, or none of them has one of the options.
    """
    found: dict[str, BackendConfig] = {}
    left = dict(texts)
    for choice in choices:
        name = choice.removesuffix(PLAIN)
        check_name(name)
        options = options_of(BACKENDS[name])
        made = backend_from_texts(name, {key: text for key, text in texts.items() if key in options})
        left = {key: text for key, text in left.items() if key not in options}
        if choice != name:
            if not isinstance(made, OnnxRuntime):
                raise InputError(f"backend {choice!r} is unknown; known: {', '.join(BACKENDS)}, onnxruntime{PLAIN}")
            made = replace(made, rewrites=False)
        found[choice] = made
    if left:
        raise InputError(f"neither {' nor '.join(choices)} has the option {', '.join(left)}; leave it out")
    return found


def use_library(backends: Sequence[BackendConfig]) -> None:
    """Have Polygraphy use the right one of the two TensorRT libraries.

    Raises:
        InputError: both libraries are asked for: Polygraphy takes one in a process.
        MissingDependencyError: Polygraphy is not installed.
        EngineError: Polygraphy uses the other library in this process already.
    """
    config: Any = require("polygraphy.config", "profile")
    libraries = {backend.library for backend in backends if isinstance(backend, TensorRT)}
    if len(libraries) > 1:
        raise InputError(f"{' and '.join(sorted(libraries))} cannot run in one process; compare each with onnxruntime")
    if libraries:
        rtx = libraries == {"tensorrt-rtx"}
        if bool(config.USE_TENSORRT_RTX) != rtx and "polygraphy.datatype" in sys.modules:
            raise EngineError("Polygraphy already uses the other TensorRT library in this process; start a new one")
        config.USE_TENSORRT_RTX = rtx  # before any other of its modules is loaded
