"""Opened plans and their execution contexts, which go in the order that the library needs.

An object of the library uses those that it was made from until it is gone. The library's Python module keeps some of
them alive and not others: a context keeps its engine, but neither the configuration nor the runtime cache that it was
made with, and a configuration does not keep its engine (``python/src/infer/pyCore.cpp`` of NVIDIA/TensorRT).
"""

import functools
import threading
import weakref
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from adacache_engines.cuda.device import CudaDevice
from adacache_engines.tensorrt.library import InstalledLibrary

if TYPE_CHECKING:
    import tensorrt as trt

Shapes = tuple[tuple[int, ...], ...]  # of a graph's inputs, in their order


def release(held: list[Any]) -> None:
    """Let objects go, the last first."""
    while held:
        held.pop()


class OpenedPlan:
    """A deserialised plan, and the contexts that are there.

    Args:
        library: library that runs the plan.
        device: device that runs it.
        runtime: the library's runtime that deserialised the engine.
        engine: the library's own engine.
        cache: runtime cache that the configuration names; None = the library is TensorRT, which has none.
        config: configuration of contexts; None = the library is TensorRT, which has none.

    Attributes:
        lock: lock that is held while a context is made.
        contexts: contexts that somebody uses, by the shapes that they were made for.
        workspaces: bytes of activations by shapes, as far as they are known.
    """

    def __init__(
        self,
        library: InstalledLibrary,
        device: CudaDevice,
        runtime: "trt.Runtime",
        engine: "trt.ICudaEngine",
        cache: Any,
        config: Any,
    ) -> None:
        self.lock = threading.Lock()
        self.contexts: MutableMapping[Shapes, Context] = weakref.WeakValueDictionary()
        self.workspaces: dict[Shapes, int] = {}
        self._held: list[Any] = [library.logger, runtime, engine, cache, config]
        weakref.finalize(self, device.drop, functools.partial(release, self._held))

    @property
    def engine(self) -> "trt.ICudaEngine":
        """The library's own engine."""
        engine: trt.ICudaEngine = self._held[2]
        return engine

    @property
    def config(self) -> Any:
        """Configuration of contexts; None = the library is TensorRT, which has none."""
        return self._held[4]


class Context:
    """An execution context for one set of shapes, which all bindings with these shapes share.

    They may, since all of a device's work is in one order: a context that has run may run with other addresses, or be
    recorded with several, and only other shapes would change what it does. So a generation has as many contexts as it
    has plans and sizes, however many decisions its policy takes. It is freed when the work that was enqueued is done.

    Args:
        plan: plan of which it is a context.
        device: device that runs it.
        context: the library's own context.

    Attributes:
        nbytes: bytes of activations that it needs.
        capturable: whether CUDA can record it, as the library says after its first run; None = it has not run.
    """

    def __init__(self, plan: OpenedPlan, device: CudaDevice, context: "trt.IExecutionContext") -> None:
        self.nbytes = 0
        self.capturable: bool | None = None
        self._held: list[Any] = [plan, context]
        self._tensors: object = None
        self._memory: int | None = None
        weakref.finalize(self, device.drop, functools.partial(release, self._held), when_idle=True)

    @property
    def context(self) -> "trt.IExecutionContext":
        """The library's own context."""
        context: trt.IExecutionContext = self._held[1]
        return context

    def take(self, addresses: dict[str, int], memory: int | None) -> bool:
        """Take the addresses of all tensors and of the activations for the runs that follow.

        Args:
            addresses: addresses by the names of the tensors; the same object has the same content.
            memory: address of ``nbytes`` for activations; None = none are needed.

        Returns:
            Whether the library takes all of them.
        """
        context = self.context
        if memory is not None and memory != self._memory:
            context.set_device_memory(memory, self.nbytes)
            self._memory = memory
        if addresses is not self._tensors:
            self._tensors = None
            for name, address in addresses.items():
                if not context.set_tensor_address(name, address):
                    return False
            self._tensors = addresses
        return True

    def run(self, stream: int) -> bool:
        """Enqueue a run, or record it; return whether the library could."""
        context = self.context
        done = bool(context.execute_async_v3(stream))
        if self.capturable is None:
            ask = getattr(context, "is_stream_capturable", None)  # TensorRT does not tell
            self.capturable = True if ask is None else bool(ask(stream))
        return done
