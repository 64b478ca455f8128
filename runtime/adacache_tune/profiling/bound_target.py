"""Engines of any backend as Polygraphy's runners, bound to buffers as a generation binds them."""

from collections.abc import Mapping
from typing import Any

from adacache_engines.contract.engine import Backend
from adacache_engines.errors import InputError
from adacache_tune.profiling.bound_runner import bound_runner
from adacache_tune.profiling.subjects import Subject
from adacache_tune.profiling.targets import Layer


class BoundTarget:
    """A bundle's engines on any backend, through the engine contract alone."""

    def __init__(self, backend: Backend) -> None:
        self.name = backend.name
        self.on_gpu = backend.device.kind != "cpu"
        self._backend = backend

    def runner(self, subject: Subject, sizes: Mapping[str, int]) -> Any:
        return bound_runner(subject.graph, self._backend.load, self._backend.device, sizes)

    def layers(self, subject: Subject, sizes: Mapping[str, int], iterations: int) -> list[Layer]:
        """Refuse: the contract has no times of layers.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.name} does not tell how long the layers of an engine take; leave --layers out")

    def plan_nbytes(self) -> int | None:
        return None

    def backend(self) -> Backend:
        return self._backend
