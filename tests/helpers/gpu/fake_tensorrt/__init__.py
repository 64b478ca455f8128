"""A stand-in for ``tensorrt_rtx`` and ``tensorrt``: plans are small files that name a numpy function.

It runs on the device memory of :class:`fake_cuda.FakeCuda` and fails as the real libraries do: by False or None, with
the reason in the log. What would be undefined there is a fault here: an address that is not aligned, an output that
overlaps another tensor, an object that is destroyed before those that use it, and a recording of a context that has not
run with its shapes or was not asked whether it can be recorded.
"""

from tests.helpers.gpu.fake_tensorrt.configuration import IRuntimeCache, IRuntimeConfig
from tests.helpers.gpu.fake_tensorrt.contents import SCRATCH
from tests.helpers.gpu.fake_tensorrt.context import IExecutionContext
from tests.helpers.gpu.fake_tensorrt.engine import ICudaEngine, Runtime
from tests.helpers.gpu.fake_tensorrt.module import VERSION, Module, library
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
from tests.helpers.gpu.fake_tensorrt.plans import WIDE, Machine, Ranges, needs, write_plans

__all__ = [
    "SCRATCH",
    "VERSION",
    "WIDE",
    "CudaGraphStrategy",
    "DataType",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineInvalidityDiagnostics",
    "EngineValidity",
    "ExecutionContextAllocationStrategy",
    "ICudaEngine",
    "IExecutionContext",
    "ILogger",
    "IRuntimeCache",
    "IRuntimeConfig",
    "Logger",
    "Machine",
    "Module",
    "Ranges",
    "Runtime",
    "TensorIOMode",
    "TensorLocation",
    "library",
    "needs",
    "write_plans",
]
