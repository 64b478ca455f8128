"""A bundle's stages as PyTorch modules on this project's own buffers and stream, recorded as CUDA graphs and replayed.

It runs what an engine of a library would run, through the same device, buffers and recorded sequences, on a GPU for
which no such library is there. PyTorch computes, and copies its results to the buffers that they belong in; the few
operations that can write there at once do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Graph
from adacache_engines.contract.device import Buffer, Call, Device, HostBuffer
from adacache_engines.contract.engine import check_binding
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import EngineError
from adacache_export.arithmetic import Add, Subtract
from tools.gpu.pytorch.stages import modules_of
from tools.gpu.skeleton import source_of

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BITS = np.dtype(np.int16)  # as which bfloat16 goes between numpy and PyTorch
IN_PLACE: Mapping[type[nn.Module], Callable[..., Tensor]] = {Add: torch.add, Subtract: torch.sub}

Surroundings = Callable[[], AbstractContextManager[None]]


class CudaArray:
    """A buffer in device memory behind the interface by which PyTorch takes memory over without a copy.

    See https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer  # whose memory must live as long as the tensor
        self.__cuda_array_interface__ = {
            "shape": buffer.shape,
            "typestr": _plain(buffer.dtype).str,
            "data": (buffer.address, False),
            "version": 2,
        }


def tensor_on(buffer: Buffer) -> Tensor:
    """Return a tensor that shares a buffer's memory."""
    if isinstance(buffer, HostBuffer):
        tensor = torch.from_numpy(buffer.array.view(_plain(buffer.dtype)))
    else:
        tensor = torch.as_tensor(CudaArray(buffer), device="cuda")
    return tensor.view(torch.bfloat16) if buffer.dtype == BFLOAT16 else tensor


def _plain(dtype: np.dtype) -> np.dtype:
    return BITS if dtype == BFLOAT16 else dtype


class Constants(TorchFunctionMode):
    """A context in which ``torch.tensor`` makes each constant once.

    A recording cannot hold a copy from ordinary host memory, which is how a constant gets to a GPU; so the run before
    the recording makes the constants, and the recording finds them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not torch.tensor:
            return func(*args, **(kwargs or {}))
        key = repr((args, sorted((kwargs or {}).items())))
        if key not in self._made:
            self._made[key] = func(*args, **(kwargs or {}))
        return self._made[key]


def on_stream(device: CudaDevice) -> Surroundings:
    """Return the context in which PyTorch works on a device's stream, with memory that it never gives back.

    Its recorded sequences use that memory's addresses, and use it one after another. Where nothing is recorded,
    constants are made anew each time, as PyTorch does.
    """
    stream = torch.cuda.ExternalStream(device.stream, device=device.index)
    pool = torch.cuda.MemPool()
    constants = Constants()

    @contextmanager
    def surroundings() -> Iterator[None]:
        with torch.cuda.stream(stream), torch.cuda.use_mem_pool(pool), torch.no_grad():
            if device.graphs:
                with constants:
                    yield
            else:
                yield

    return surroundings


class ModuleEngine:
    """An engine that runs a stage's module, and leaves its results in the buffers that it was bound to."""

    def __init__(self, graph: Graph, module: nn.Module, surroundings: Surroundings) -> None:
        self.graph, self._module, self._surroundings = graph, module, surroundings

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        check_binding(self.graph, tensors)
        held = dict(tensors)
        inputs = [tensor_on(held[spec.name]) for spec in self.graph.inputs]
        outputs = [tensor_on(held[spec.name]) for spec in self.graph.outputs]
        in_place = IN_PLACE.get(type(self._module))

        def compute() -> None:
            if in_place is not None:
                in_place(*inputs, out=outputs[0])
                return
            result = self._module(*inputs)
            for output, value in zip(outputs, result if isinstance(result, tuple) else (result,), strict=True):
                if value.shape != output.shape:  # which a copy would spread over the buffer
                    raise EngineError(f"{self.graph.name} gave {tuple(value.shape)} for {tuple(output.shape)}")
                output.copy_(value)

        def call() -> None:
            try:
                with self._surroundings():
                    compute()
            except EngineError:
                raise
            except Exception as error:  # torch raises errors of every kind
                raise EngineError(f"PyTorch failed on {self.graph.name}: {error}") from error

        return call

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Return None, because PyTorch allocates as it goes."""


class TorchOnBuffers:
    """A bundle's stages as PyTorch modules on a device of this project.

    Args:
        bundle: the opened bundle.
        device: device whose buffers and stream are used; it says whether sequences are recorded.
    """

    def __init__(self, bundle: Bundle, device: Device) -> None:
        self.device = device
        self.name = f"torch {torch.__version__} on {device.kind}"
        self._modules = modules_of(bundle, device.kind)
        self._surroundings: Surroundings = on_stream(device) if isinstance(device, CudaDevice) else torch.no_grad

    def weights_nbytes(self, graphs: Sequence[Graph]) -> None:
        """Return None, because all weights are loaded at once."""

    def load(self, graph: Graph) -> ModuleEngine:
        return ModuleEngine(graph, self._modules[source_of(graph)], self._surroundings)

    def close(self) -> None:
        """Do nothing: memory is freed with the engines."""
