"""A bundle's stages in PyTorch behind the engine contract, so that the same loop runs them on the same schedule.

Engines hand their results on as they are: a buffer takes a result's memory over where nothing else shares the
buffer's, so the contract costs PyTorch no copies.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.contract.device import Array, Buffer, Call, HostMark, Mark, in_turn
from adacache_engines.contract.engine import check_binding
from adacache_engines.errors import EngineError
from adacache_export.writing.weights_file import TORCH_DTYPES
from tools.gpu.pytorch.stages import modules_of
from tools.gpu.skeleton import source_of

DTYPE_OF = {NUMPY_DTYPES[name]: dtype for name, dtype in TORCH_DTYPES.items()}
NUMPY_OF = {dtype: numpy for numpy, dtype in DTYPE_OF.items()}


class TorchBuffer:
    """A tensor, whose ``address`` changes, because PyTorch allocates results anew."""

    def __init__(self, tensor: Tensor, shared: bool = False) -> None:
        self.tensor, self._shared = tensor, shared

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype:
        return NUMPY_OF[self.tensor.dtype]

    @property
    def nbytes(self) -> int:
        return self.tensor.numel() * self.tensor.itemsize

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()

    def part(self, start: int, stop: int) -> "TorchBuffer":
        self._shared = True
        return TorchBuffer(self.tensor[start:stop], shared=True)

    def row(self, index: int) -> "TorchBuffer":
        self._shared = True
        return TorchBuffer(self.tensor[index], shared=True)

    def write(self, array: Array) -> None:
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"a buffer {self.dtype} {self.shape} cannot hold {array.dtype} {array.shape}")
        plain = np.array(array, order="C")  # of its own: PyTorch wants to be able to write to it
        raw = plain.view(np.int16) if self.tensor.dtype == torch.bfloat16 else plain
        self.tensor.copy_(torch.from_numpy(raw).view(self.tensor.dtype))

    def read(self) -> Array:
        host = self.tensor.contiguous().cpu()
        if host.dtype == torch.bfloat16:
            return np.array(host.view(torch.int16).numpy().view(self.dtype))
        return np.array(host.numpy())

    def take(self, result: Tensor) -> None:
        """Make the result the buffer's content."""
        if self._shared or result.shape != self.tensor.shape or result.dtype != self.tensor.dtype:
            self.tensor.copy_(result)
        else:
            self.tensor = result


class TorchReadback:
    """Values on their way to the host, copied after the work that was enqueued before ``start``."""

    def __init__(self, source: TorchBuffer) -> None:
        self._source = source
        self._value: Tensor | None = None

    def start(self) -> None:
        self._value = self._source.tensor.to("cpu", non_blocking=True, copy=True)

    def result(self) -> Array:
        assert self._value is not None, "start() comes before result()"
        if self._source.tensor.is_cuda:
            torch.cuda.current_stream().synchronize()
        return TorchBuffer(self._value).read()


class TorchDevice:
    """PyTorch's device ``cuda``, or ``cpu`` for tests; everything is on the current stream."""

    def __init__(self, kind: str) -> None:
        self.kind, self.index = kind, 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> TorchBuffer:
        return TorchBuffer(torch.zeros(shape, dtype=DTYPE_OF[dtype], device=self.kind))

    def copy(self, source: Buffer, target: Buffer) -> Call:
        assert isinstance(source, TorchBuffer)
        assert isinstance(target, TorchBuffer)

        def call() -> None:
            target.tensor.copy_(source.tensor)

        return call

    def readback(self, source: Buffer) -> TorchReadback:
        assert isinstance(source, TorchBuffer)
        return TorchReadback(source)

    def sequence(self, calls: Sequence[Call], name: str = "calls") -> Call:
        return in_turn(calls)

    def free_nbytes(self) -> int | None:
        return torch.cuda.mem_get_info()[0] if self.kind == "cuda" else None

    def synchronize(self) -> None:
        if self.kind == "cuda":
            torch.cuda.synchronize()

    def mark(self) -> Mark:
        mark = self.marker()
        mark()
        return mark

    def marker(self) -> Mark:
        return HostMark() if self.kind != "cuda" else TorchMark()

    def milliseconds(self, start: Mark, stop: Mark) -> float:
        if isinstance(start, HostMark) and isinstance(stop, HostMark):
            return 1e3 * (stop.time_s - start.time_s)
        assert isinstance(start, TorchMark)
        assert isinstance(stop, TorchMark)
        stop.event.synchronize()
        return float(start.event.elapsed_time(stop.event))


class TorchMark:
    """A point on the current stream."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)

    def __call__(self) -> None:
        self.event.record()


class TorchEngine:
    """An engine that runs a stage's module."""

    def __init__(self, graph: Graph, run: Callable[..., Any]) -> None:
        self.graph, self._run = graph, run

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        check_binding(self.graph, tensors)
        inputs = [tensors[spec.name] for spec in self.graph.inputs]
        outputs = [tensors[spec.name] for spec in self.graph.outputs]

        def call() -> None:
            try:
                with torch.no_grad():
                    result = self._run(*(buffer.tensor for buffer in inputs))  # type: ignore[attr-defined]
                    for buffer, value in zip(outputs, result if isinstance(result, tuple) else (result,), strict=True):
                        buffer.take(value)  # type: ignore[attr-defined]
            except Exception as error:  # torch and its compiler raise errors of every kind
                raise EngineError(f"PyTorch failed on {self.graph.name}: {error}") from error

        return call

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Return None, because PyTorch allocates as it goes."""


class TorchBackend:
    """A bundle's stages as PyTorch modules with the bundle's weights.

    Args:
        bundle: the opened bundle.
        kind: PyTorch's device, ``cuda`` or ``cpu``.
        compiled: whether modules go through ``torch.compile``, for fixed shapes.
    """

    def __init__(self, bundle: Bundle, kind: str = "cuda", compiled: bool = False) -> None:
        self.name = f"torch {torch.__version__} {'compiled' if compiled else 'eager'}"
        self.device = TorchDevice(kind)
        self._compiled = compiled
        self._modules = modules_of(bundle, kind)
        self._runs: dict[str, Callable[..., Any]] = {}

    def weights_nbytes(self, graphs: Sequence[Graph]) -> None:
        """Return None, because all weights are loaded at once."""

    def load(self, graph: Graph) -> TorchEngine:
        source = source_of(graph)
        if source not in self._runs:
            module = self._modules[source]
            self._runs[source] = torch.compile(module, dynamic=False) if self._compiled else module
        return TorchEngine(graph, self._runs[source])

    def close(self) -> None:
        """Do nothing: memory is freed with the engines."""
