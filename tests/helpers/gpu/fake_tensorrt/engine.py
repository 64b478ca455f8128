"""The runtime of the faked TensorRT, and the engines that it makes of plans."""

import json
from typing import TYPE_CHECKING, Any

from adacache_engines.bundle.tensors import ELEMENT_TYPES
from tests.helpers.gpu.fake_tensorrt.configuration import IRuntimeConfig
from tests.helpers.gpu.fake_tensorrt.contents import MAGIC, Contents
from tests.helpers.gpu.fake_tensorrt.context import IExecutionContext
from tests.helpers.gpu.fake_tensorrt.lives import Life, interrupted, living
from tests.helpers.gpu.fake_tensorrt.names import (
    DataType,
    Dims,
    EngineValidity,
    ExecutionContextAllocationStrategy,
    TensorIOMode,
    TensorLocation,
)

if TYPE_CHECKING:
    from tests.helpers.gpu.fake_tensorrt.module import Module


@interrupted
class ICudaEngine:
    def __init__(self, module: "Module", contents: Contents, runtime: Life) -> None:
        self.module, self._contents, self.plan = module, contents, contents.plan
        self._life = living(self, module.cuda, f"the engine of {self.plan['function']}", runtime)
        module.engines.add(self)

    @property
    def streamable_weights_size(self) -> int:
        return len(json.dumps(self.plan)) if self.plan.get("streaming") else 0

    @property
    def num_io_tensors(self) -> int:
        return len(self._contents.specs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.plan["profiles"])

    @property
    def device_memory_size_v2(self) -> int:
        return max(map(self.get_device_memory_size_for_profile_v2, range(self.num_optimization_profiles)))

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        largest = [self._contents.profile_shape(spec.name, profile_index)[2] for spec in self._contents.inputs]
        return self._contents.need([tuple(dims) for dims in largest])

    def get_tensor_name(self, index: int) -> str:
        return list(self._contents.specs)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if any(spec.name == name for spec in self._contents.inputs) else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[ELEMENT_TYPES[self._contents.specs[name].dtype].tensorrt]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name == self.plan.get("on_host") else TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        return self._contents.profile_shape(name, profile_index)

    def create_runtime_config(self) -> "IRuntimeConfig":
        return IRuntimeConfig(self.module, self._life)

    def create_execution_context(self, how: Any) -> "IExecutionContext | None":
        settings = how.settings if isinstance(how, IRuntimeConfig) else None
        strategy = how if settings is None else settings.strategy
        if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            self.module.error("the context would allocate memory of its own")
            return None
        uses = [self._life]
        if isinstance(how, IRuntimeConfig):
            uses += [how.life, *([how.settings.cache.life] if how.settings.cache else [])]
        return IExecutionContext(self.module, self._contents, settings, uses)


@interrupted
class Runtime:
    def __init__(self, module: "Module") -> None:
        self.module = module
        self.life = living(self, module.cuda, "the runtime")

    def get_engine_validity(self, serialized_engine: Any) -> tuple[EngineValidity, int]:
        try:
            reasons = self.module.invalid(json.loads(bytes(serialized_engine)))
        except ValueError:
            return EngineValidity.INVALID, 0
        return EngineValidity.INVALID if reasons else EngineValidity.VALID, int(reasons)

    def deserialize_cuda_engine(self, serialized_engine: Any) -> "ICudaEngine | None":
        content = bytes(serialized_engine)
        self.module.opened.append(content)
        plan = json.loads(content)
        if plan["magic"] != MAGIC or self.module.invalid(plan):
            self.module.error("Serialization assertion failed")
            return None
        return ICudaEngine(self.module, Contents(plan), self.life)
