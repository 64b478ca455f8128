"""Targets: backends whose engines are profiled as Polygraphy's runners."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from adacache_engines.contract.engine import Backend
from adacache_engines.errors import AdaCacheError, EngineError, require
from adacache_tune.profiling.subjects import Subject


@dataclass(frozen=True)
class Layer:
    """A layer of a compiled graph: its name there, what it computes if that is told, and its median time."""

    name: str
    op: str
    median_ms: float


class Target(Protocol):
    """A backend whose engines can be profiled one by one."""

    @property
    def name(self) -> str:
        """Name for reports, such as ``onnxruntime CPUExecutionProvider``."""
        ...

    @property
    def on_gpu(self) -> bool: ...

    def runner(self, subject: Subject, sizes: Mapping[str, int]) -> Any:
        """Return a Polygraphy runner that loads the engine when it is activated."""
        ...

    def layers(self, subject: Subject, sizes: Mapping[str, int], iterations: int) -> Sequence[Layer]:
        """Return the times of an engine's layers, in a run of their own, because measuring them slows it down."""
        ...

    def plan_nbytes(self) -> int | None:
        """Return the size of the compiled plans; None = the graphs are compiled when they are loaded."""
        ...

    def backend(self) -> Backend:
        """Return the backend that runs a whole generation."""
        ...


@contextlib.contextmanager
def polygraphy_errors(doing: str) -> Iterator[None]:
    """Silence Polygraphy, and raise its errors as the project's own.

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
