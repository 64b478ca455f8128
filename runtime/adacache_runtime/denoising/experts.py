"""The engines of a model's experts on a device that holds those of one expert at a time (``--expert-offload``).

Before the engines of an expert are opened, those of the other are closed: the calls that generations have bound to them
are dropped, recorded ones first, and what they held on the device is free. Whoever runs a call of an expert holds its
engines meanwhile, so that no other thread can close them.
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from adacache_engines.bundle.manifest import Graph, Manifest, StageEntry
from adacache_engines.contract.dry_run import WorkspaceSource
from adacache_engines.contract.engine import Backend, Engine
from adacache_engines.errors import AdaCacheError, BundleError, DeviceLostError, EngineError, InputError


class Binder(Protocol):
    """An object that keeps calls that are bound to experts' engines."""

    def forget(self, expert: int) -> None:
        """Drop all calls that are bound to an expert's engines; they are bound anew when they are needed again."""
        ...


@dataclass(frozen=True)
class _Twin:
    """An engine that is not loaded, and whose activations are those of the same stage's engine of another expert.

    Experts are transformers of one architecture, so that their graphs differ in their weights alone.
    """

    graph: Graph
    engine: Engine

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        return self.engine.workspace_nbytes(shapes)


class OneExpert:
    """The stages of the one expert whose engines are loaded.

    Args:
        manifest: the bundle's manifest.
        backend: the backend that loads engines.
        progress: gets 1 for each engine that is loaded.

    Attributes:
        stages: the engines that are loaded, by the name of their graph; it changes when experts take turns.
    """

    def __init__(self, manifest: Manifest, backend: Backend, progress: Callable[[int], None] = lambda _: None) -> None:
        self.stages: dict[str, Engine] = {}
        self._manifest, self._backend, self._progress = manifest, backend, progress
        self._loaded: int | None = None
        self._lock = threading.RLock()
        self._binders: weakref.WeakSet[Binder] = weakref.WeakSet()

    def add(self, binder: Binder) -> None:
        """Have an object drop its bound calls when an expert's engines are closed."""
        with self._lock:
            self._binders.add(binder)

    @contextmanager
    def held(self, expert: int) -> Iterator[float | None]:
        """Keep an expert's engines loaded inside the context.

        Args:
            expert: index of the expert.

        Yields:
            Milliseconds that it took to close the other expert's engines and to open these; None where they were
            loaded.

        Raises:
            EngineError: an engine cannot be loaded. None is loaded then; the next that is held is loaded anew.
        """
        with self._lock:
            yield self._switch(expert)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep those engines loaded inside the context that are there, whichever they are.

        Raises:
            EngineError: no expert is loaded, and the first one cannot be.
        """
        with self._lock:
            if self._loaded is None:
                self._switch(0)
            yield

    def sources(self) -> Mapping[str, WorkspaceSource]:
        """Return by graph what tells the activations of all experts' engines; for use inside :meth:`kept`."""
        assert self._loaded is not None
        engines = [self.stages[stage.graph.name] for stage in self._stages_of(self._loaded)]
        return {
            stage.graph.name: engine if expert == self._loaded else _Twin(stage.graph, engine)
            for expert in range(len(self._manifest.experts))
            for stage, engine in zip(self._stages_of(expert), engines, strict=True)
        }

    def missing_nbytes(self) -> int:
        """Return by how many bytes the weights of the largest expert exceed those that are loaded now."""
        nbytes = [self._backend.weights_nbytes(graphs) or 0 for graphs in expert_graphs(self._manifest)]
        loaded = self._loaded
        return max(nbytes) - (0 if loaded is None else nbytes[loaded])

    def _switch(self, expert: int) -> float | None:
        if self._loaded == expert:
            return None
        self._backend.device.synchronize()  # the calls before are not part of the time that a switch takes
        began = time.perf_counter()
        if self._loaded is not None:
            self._close(self._loaded)
        self._open(expert)
        return 1e3 * (time.perf_counter() - began)

    def _close(self, expert: int) -> None:
        for binder in list(self._binders):
            binder.forget(expert)
        self._loaded = None
        self.stages.clear()
        self._backend.device.synchronize()

    def _open(self, expert: int) -> None:
        self.stages.clear()  # an interrupted close may have left some
        try:
            for stage in self._stages_of(expert):
                self.stages[stage.graph.name] = self._backend.load(stage.graph)
                self._progress(1)
        except BaseException as error:
            self.stages.clear()
            if isinstance(error, DeviceLostError | BundleError) or not isinstance(error, AdaCacheError | MemoryError):
                raise
            raise EngineError(
                f"the engines of expert {self._manifest.experts[expert].name} cannot be loaded: {error}; no expert is "
                "loaded now, and the next generation loads its own again"
            ) from error
        self._loaded = expert

    def _stages_of(self, expert: int) -> list[StageEntry]:
        return [stage for stage in self._manifest.stages if stage.expert == expert]


def expert_graphs(manifest: Manifest) -> list[list[Graph]]:
    """Return by expert the graphs of its stages, in the order of execution."""
    return [
        [stage.graph for stage in manifest.stages if stage.expert == expert] for expert in range(len(manifest.experts))
    ]


def check_offload(folder: Path, manifest: Manifest) -> None:
    """Check that a bundle's model has experts that can take turns.

    Raises:
        InputError: the model is one transformer.
    """
    if len(manifest.experts) == 1:
        raise InputError(
            f"{folder} has one transformer, which has to be loaded all the time; --expert-offload is for models of two "
            "experts: leave it out"
        )
