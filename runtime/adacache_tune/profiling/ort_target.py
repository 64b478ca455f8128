"""Engines on ONNX Runtime as Polygraphy's runners: the sessions that a generation runs on, and their layers."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from adacache_engines.bundle.manifest import Graph
from adacache_engines.contract.engine import Backend
from adacache_engines.errors import require
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_tune.profiling.bound_runner import bind, bound_runner, write
from adacache_tune.profiling.subjects import Subject, example
from adacache_tune.profiling.targets import Layer

KERNEL = "_kernel_time"  # how ONNX Runtime ends the name of a node in its profile


class OrtTarget:
    """A bundle's engines on one of ONNX Runtime's providers."""

    def __init__(self, backend: OrtBackend) -> None:
        self.name = backend.name
        self.on_gpu = backend.device.kind != "cpu"
        self._backend = backend

    def runner(self, subject: Subject, sizes: Mapping[str, int]) -> Any:
        """Return Polygraphy's own runner where numpy can hold all tensors, on the host."""
        graph, backend = subject.graph, self._backend
        if self.on_gpu or _has_bfloat16(graph):
            return bound_runner(graph, backend.load, backend.device, sizes)
        return require("polygraphy.backend.onnxrt", "profile").OnnxrtRunner(
            lambda: backend.session(graph), "OnnxrtRunner"
        )

    def layers(self, subject: Subject, sizes: Mapping[str, int], iterations: int) -> list[Layer]:
        """Return layers from ONNX Runtime's own profile of ``iterations`` runs, after one that is not counted."""
        graph, device = subject.graph, self._backend.device
        with tempfile.TemporaryDirectory(prefix="adacache-profile-") as folder:
            session = self._backend.session(graph, Path(folder) / "layers")
            buffers, call = bind(self._backend.engine(graph, session), device, sizes)
            write(buffers, example(graph, sizes))
            for _ in range(1 + iterations):
                call()
            events = json.loads(Path(session.end_profiling()).read_bytes())
        times: dict[str, list[float]] = {}
        ops: dict[str, str] = {}
        for event in events:
            if event["cat"] == "Node" and event["name"].endswith(KERNEL):
                name = event["name"].removesuffix(KERNEL)
                times.setdefault(name, []).append(event["dur"] / 1e3)
                ops[name] = event["args"].get("op_name", "")
        return [Layer(name, ops[name], median(values[-iterations:])) for name, values in times.items()]

    def plan_nbytes(self) -> int | None:
        return None

    def backend(self) -> Backend:
        return self._backend


def _has_bfloat16(graph: Graph) -> bool:
    return any(spec.dtype == "bfloat16" for spec in (*graph.inputs, *graph.outputs))
