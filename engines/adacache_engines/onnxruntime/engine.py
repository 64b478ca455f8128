"""Engines on ONNX Runtime: each graph is a session whose inputs and outputs are bound to the caller's buffers."""

import contextlib
from collections.abc import Mapping
from typing import Any

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import ELEMENT_TYPES, DType
from adacache_engines.contract.device import Buffer, Call, Device
from adacache_engines.contract.engine import check_binding
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import DeviceLostError, EngineError


class OrtEngine:
    """An engine whose graph is loaded into a session of ONNX Runtime.

    Args:
        graph: the manifest's entry of the graph.
        session: the session. On a GPU it must have been opened with the device's stream.
        device: device that holds the buffers.
        runtime: ONNX Runtime's module.
    """

    def __init__(self, graph: Graph, session: Any, device: Device, runtime: Any) -> None:
        self.graph = graph
        self._session = session
        self._device = device
        self._options: Any = None
        self._turn: Any = contextlib.nullcontext
        if isinstance(device, CudaDevice):
            self._options, self._turn = runtime.RunOptions(), device.turn
            # a run only enqueues; what reads its results on the host waits for them
            self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        check_binding(self.graph, tensors)
        binding = self._session.io_binding()
        place = (self._device.kind, self._device.index)
        # an input that shaped the graph but carries no value is optimised away
        used = {node.name for node in self._session.get_inputs()}
        for spec in self.graph.inputs:
            if spec.name in used:
                buffer = tensors[spec.name]
                binding.bind_input(spec.name, *place, _element(spec.dtype), buffer.shape, buffer.address)
        for spec in self.graph.outputs:
            buffer = tensors[spec.name]
            binding.bind_output(spec.name, *place, _element(spec.dtype), buffer.shape, buffer.address)
        run, held = self._session.run_with_iobinding, dict(tensors)
        options, turn = self._options, self._turn

        def call() -> None:
            try:
                with turn():
                    run(binding, options)
            except DeviceLostError:
                raise
            except Exception as error:
                shapes = ", ".join(f"{name} {buffer.shape}" for name, buffer in held.items())
                raise EngineError(f"engine {self.graph.name} failed on {shapes}: {error}") from error

        return call

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Return None: ONNX Runtime's arena grows while it runs."""


def _element(dtype: DType) -> Any:
    """Return the type as ONNX Runtime takes it: numpy's, or ONNX's number where numpy has none of its own."""
    kind = ELEMENT_TYPES[dtype]
    return kind.onnx if dtype == "bfloat16" else kind.numpy.type
