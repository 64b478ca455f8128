"""The module that the faked TensorRT is, and what opening it gives."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from adacache_engines.bundle.manifest import Library
from adacache_engines.contract.fake import Function
from adacache_engines.tensorrt.library import InstalledLibrary, _logger
from tests.helpers.gpu.fake_cuda import FakeCuda
from tests.helpers.gpu.fake_tensorrt.context import IExecutionContext
from tests.helpers.gpu.fake_tensorrt.engine import ICudaEngine, Runtime
from tests.helpers.gpu.fake_tensorrt.names import (
    CudaGraphStrategy,
    DataType,
    DynamicShapesKernelSpecializationStrategy,
    EngineInvalidityDiagnostics,
    EngineValidity,
    ExecutionContextAllocationStrategy,
    ILogger,
    Logger,
    TensorIOMode,
    TensorLocation,
)
from tests.helpers.model.fake_model import functions

VERSION = "1.7"


class Module:
    """The module that stands in for ``tensorrt_rtx``.

    Attributes:
        opened: contents that were deserialised, in order.
        contexts: contexts that are alive.
        made: number of contexts that were ever made.
        compiled: (function, shapes) whose kernels were compiled, not read from a cache.
        refuse: name of a function whose plan fails when it runs.
        portable: plans run on GPUs that they were not built for.
        capturable: what contexts say of whether they can be recorded.
        interrupt: called before each method, as finalisers may be; None = nothing.
    """

    ILogger, Logger, DataType, TensorIOMode, TensorLocation = ILogger, Logger, DataType, TensorIOMode, TensorLocation
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    CudaGraphStrategy = CudaGraphStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
    EngineValidity, EngineInvalidityDiagnostics = EngineValidity, EngineInvalidityDiagnostics
    Builder = object

    def __init__(self, cuda: FakeCuda, version: str = VERSION, functions: Mapping[str, Function] | None = None) -> None:
        self.cuda, self.__version__ = cuda, version
        self.functions = functions
        self.opened: list[bytes] = []
        self.contexts: weakref.WeakSet[IExecutionContext] = weakref.WeakSet()
        self.engines: weakref.WeakSet[ICudaEngine] = weakref.WeakSet()
        self.made = 0
        self.compiled: list[str] = []
        self.refuse: str | None = None
        self.portable = False
        self.capturable = True
        self.interrupt: Callable[[], None] | None = None
        self.logger: Any = None

    def Runtime(self, logger: Any) -> "Runtime":
        self.logger = logger
        return Runtime(self)

    def error(self, message: str) -> None:
        self.logger.log(Logger.ERROR, message)

    def run(self, name: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return (self.functions or functions())[name](given)

    def invalid(self, plan: Mapping[str, Any]) -> EngineInvalidityDiagnostics:
        """Return why a plan does not run here; 0 = it does."""
        reasons = EngineInvalidityDiagnostics(0)
        if plan["version"] != self.__version__:
            reasons |= EngineInvalidityDiagnostics.VERSION_MISMATCH
        if not self.portable and ".".join(map(str, self.cuda.capability)) not in plan["targets"]:
            reasons |= EngineInvalidityDiagnostics.UNSUPPORTED_CC
        return reasons


def library(module: Module, name: Library = "tensorrt-rtx") -> InstalledLibrary:
    """Return the module as ``open_library`` would return it."""
    errors: list[str] = []
    return InstalledLibrary(name, module, module.__version__, _logger(module, errors), errors)
