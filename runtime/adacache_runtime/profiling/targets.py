"""Where engines are profiled: the back ends by name, each as Polygraphy's runners."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from adacache_engines.base import Backend
from adacache_engines.bundle import Bundle
from adacache_engines.errors import AdaCacheError, EngineError, InputError, require
from adacache_engines.ort import OrtBackend
from adacache_engines.trt_library import LIBRARIES
from adacache_runtime.profiling.subjects import Subject

PLAIN = "onnxruntime-plain"
BACKENDS = ("onnxruntime", PLAIN, *LIBRARIES)


@dataclass(frozen=True)
class Layer:
    """A layer of a compiled graph: its name there, what it computes if that is told, and its median time."""

    name: str
    op: str
    median_ms: float


class Target(Protocol):
    """A back end whose engines can be profiled one by one."""

    @property
    def name(self) -> str:
        """For reports: ``onnxruntime CPUExecutionProvider``."""
        ...

    @property
    def on_gpu(self) -> bool: ...

    def runner(self, subject: Subject, sizes: Mapping[str, int]) -> Any:
        """A Polygraphy runner that loads the engine when it is activated."""
        ...

    def layers(self, subject: Subject, sizes: Mapping[str, int], iterations: int) -> Sequence[Layer]:
        """Times of an engine's layers, in a run of their own: looking at them slows it down."""
        ...

    def plan_nbytes(self) -> int | None:
        """Size of the compiled plans; None = the graphs are compiled when they are loaded."""
        ...

    def backend(self) -> Backend | None:
        """What runs a whole generation; None = there is nothing yet."""
        ...


def open_target(bundle: Bundle, choice: str, provider: str, threads: int, sizes: Mapping[str, int]) -> Target:
    """
    Raises:
        InputError: no such back end or provider.
        MissingDependencyError: it is not installed.
        EngineError: there is no GPU, or the bundle has no plans for it.
        OutOfRangeError: the plans were not built for these sizes.
    """
    # in a function: each of the two is needed only where it is chosen
    from adacache_runtime.profiling.ort_target import OrtTarget
    from adacache_runtime.profiling.trt_target import TrtTarget

    if choice in LIBRARIES:
        return TrtTarget(bundle, choice, sizes)
    check_names([choice])
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


@contextlib.contextmanager
def polygraphy_errors(doing: str) -> Iterator[None]:
    """Polygraphy says nothing, and its errors come out as the project's own.

    Raises:
        EngineError: something failed that is not the project's own error.
    """
    logger = require("polygraphy.logger", "profile").G_LOGGER
    try:
        with logger.verbosity(logger.CRITICAL + 1):  # what is critical is raised as well
            yield
    except AdaCacheError:
        raise
    except Exception as error:
        raise EngineError(f"{doing} failed: {' '.join(str(error).split())}") from error
