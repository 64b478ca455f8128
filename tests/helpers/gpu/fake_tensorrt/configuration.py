"""Runtime configurations and caches of compiled kernels of the faked TensorRT."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.helpers.gpu.fake_tensorrt.lives import Life, interrupted, living
from tests.helpers.gpu.fake_tensorrt.names import (
    CudaGraphStrategy,
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
)

if TYPE_CHECKING:
    from tests.helpers.gpu.fake_tensorrt.module import Module


CACHE_MAGIC = b"kernels of "


@dataclass
class Kernels:
    """Kernels in a runtime cache.

    Attributes:
        life: life of the cache.
        names: kernels that were compiled.
    """

    life: Life
    names: set[str] = field(default_factory=set)


@dataclass
class Settings:
    """Settings in a runtime configuration."""

    strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    graphs: CudaGraphStrategy = CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    kernels: DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy.LAZY
    cache: Kernels | None = None


@interrupted
class IRuntimeConfig:
    def __init__(self, module: "Module", engine: Life) -> None:
        self.module, self.settings = module, Settings()
        self.life = living(self, module.cuda, "the configuration", engine)

    @property
    def cuda_graph_strategy(self) -> CudaGraphStrategy:
        return self.settings.graphs

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, strategy: CudaGraphStrategy) -> None:
        self.settings.graphs = strategy

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> DynamicShapesKernelSpecializationStrategy:
        return self.settings.kernels

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, kernels: DynamicShapesKernelSpecializationStrategy) -> None:
        self.settings.kernels = kernels

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.settings.strategy = strategy

    def create_runtime_cache(self) -> "IRuntimeCache":
        return IRuntimeCache(self.module)

    def set_runtime_cache(self, cache: "IRuntimeCache") -> bool:
        self.settings.cache = cache.kernels
        return True


@interrupted
class IRuntimeCache:
    def __init__(self, module: "Module") -> None:
        self.module = module
        self.kernels = Kernels(living(self, module.cuda, "the runtime cache"))

    def _header(self) -> bytes:
        return CACHE_MAGIC + self.module.__version__.encode() + b"\n"

    def serialize(self) -> bytes:
        return self._header() + "\n".join(sorted(self.kernels.names)).encode()

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(self._header()):
            self.module.error("the cache is of another version")
            return False
        self.kernels.names |= set(blob[len(self._header()) :].decode().split("\n"))
        return True
