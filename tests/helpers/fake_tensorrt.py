"""A stand-in for ``tensorrt_rtx`` and ``tensorrt``: plans are small files that name a numpy function.

It runs on the device memory of :class:`fake_cuda.FakeCuda` and fails as the real libraries do: by False or None, with
the reason in the log.
"""

import enum
import hashlib
import json
import math
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adacache_engines.bundle.files import MANIFEST, Bundle, dump_manifest
from adacache_engines.bundle.manifest import Graph, Library, PlanEntry, PlanSet
from adacache_engines.bundle.tensors import ELEMENT_TYPES, NUMPY_DTYPES
from adacache_engines.contract.fake import Function
from adacache_engines.tensorrt.library import InstalledLibrary, _logger
from adacache_engines.tensorrt.plans import ENGINES
from tests.helpers.fake_cuda import Bytes, FakeCuda
from tests.helpers.fake_model import functions

MAGIC = "a plan"
CACHE_MAGIC = b"kernels of "
VERSION = "1.7"
SCRATCH = 16  # bytes of activation memory for each byte of a plan's first input
LEAST = 512  # and for any input

Ranges = Mapping[str, tuple[int, int, int]]
WIDE: dict[str, Ranges] = {
    "any": dict.fromkeys(
        ("samples", "batch", "frames", "height", "width", "text", "calls", "pairs", "patch_frames", "tokens"),
        (1, 4, 64),
    )
}


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    BF16 = 2
    INT64 = 3
    BOOL = 4


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1


class ILogger:
    pass


class Logger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)


class Dims:
    """Has a length and items; no more is promised."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = tuple(sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> int:
        return self._sizes[index]


class Module:
    """The module that stands in for ``tensorrt_rtx``.

    Attributes:
        opened: contents that were deserialised, in order.
        contexts: contexts that are alive.
        compiled: (function, shapes) whose kernels were compiled, not read from a cache.
        refuse: name of a function whose plan fails when it runs.
    """

    ILogger, Logger, DataType, TensorIOMode, TensorLocation = ILogger, Logger, DataType, TensorIOMode, TensorLocation
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    CudaGraphStrategy = CudaGraphStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
    Builder = object

    def __init__(self, cuda: FakeCuda, version: str = VERSION, functions: Mapping[str, Function] | None = None) -> None:
        self.cuda, self.__version__ = cuda, version
        self.functions = functions
        self.opened: list[bytes] = []
        self.contexts: weakref.WeakSet[IExecutionContext] = weakref.WeakSet()
        self.engines: weakref.WeakSet[ICudaEngine] = weakref.WeakSet()
        self.compiled: list[str] = []
        self.refuse: str | None = None
        self.logger: Any = None

    def Runtime(self, logger: Any) -> "Runtime":
        self.logger = logger
        return Runtime(self)

    def error(self, message: str) -> None:
        self.logger.log(Logger.ERROR, message)

    def run(self, name: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return (self.functions or functions())[name](given)


class Runtime:
    def __init__(self, module: Module) -> None:
        self._module = module

    def deserialize_cuda_engine(self, serialized_engine: Any) -> "ICudaEngine | None":
        content = bytes(serialized_engine)
        self._module.opened.append(content)
        plan = json.loads(content)
        if plan["magic"] != MAGIC or plan["version"] != self._module.__version__:
            self._module.error("Serialization assertion failed")
            return None
        return ICudaEngine(self._module, plan)


class ICudaEngine:
    def __init__(self, module: Module, plan: dict[str, Any]) -> None:
        self.module, self.plan = module, plan
        self.inputs = Graph.model_validate(plan["graph"]).inputs
        self.outputs = Graph.model_validate(plan["graph"]).outputs
        self.specs = {spec.name: spec for spec in (*self.inputs, *self.outputs)}
        module.engines.add(self)

    @property
    def streamable_weights_size(self) -> int:
        return len(json.dumps(self.plan)) if self.plan.get("streaming") else 0

    @property
    def num_io_tensors(self) -> int:
        return len(self.specs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.plan["profiles"])

    @property
    def device_memory_size_v2(self) -> int:
        return max(map(self.get_device_memory_size_for_profile_v2, range(self.num_optimization_profiles)))

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self.need([tuple(self.get_tensor_profile_shape(spec.name, profile_index)[2]) for spec in self.inputs])

    def need(self, shapes: Sequence[tuple[int, ...]]) -> int:
        if not self.plan["scratch"]:
            return 0
        item = NUMPY_DTYPES[self.inputs[0].dtype].itemsize
        return LEAST + int(self.plan["scratch"]) * math.prod(shapes[0]) * item

    def get_tensor_name(self, index: int) -> str:
        return list(self.specs)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if any(spec.name == name for spec in self.inputs) else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[ELEMENT_TYPES[self.specs[name].dtype].tensorrt]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name == self.plan.get("on_host") else TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        ranges = self.plan["profiles"][profile_index]
        return [Dims(self.specs[name].shape({axis: r[end] for axis, r in ranges.items()})) for end in range(3)]

    def create_runtime_config(self) -> "IRuntimeConfig":
        return IRuntimeConfig(self.module)

    def create_execution_context(self, how: Any) -> "IExecutionContext | None":
        strategy = how.strategy if isinstance(how, IRuntimeConfig) else how
        if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            self.module.error("the context would allocate memory of its own")
            return None
        return IExecutionContext(self, how if isinstance(how, IRuntimeConfig) else None)


class IRuntimeConfig:
    def __init__(self, module: Module) -> None:
        self._module = module
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.cuda_graph_strategy = CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.cache: IRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> "IRuntimeCache":
        return IRuntimeCache(self._module)

    def set_runtime_cache(self, cache: "IRuntimeCache") -> bool:
        self.cache = cache
        return True


class IRuntimeCache:
    def __init__(self, module: Module) -> None:
        self._module = module
        self.kernels: set[str] = set()

    def _header(self) -> bytes:
        return CACHE_MAGIC + self._module.__version__.encode() + b"\n"

    def serialize(self) -> bytes:
        return self._header() + "\n".join(sorted(self.kernels)).encode()

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(self._header()):
            self._module.error("the cache is of another version")
            return False
        self.kernels |= set(blob[len(self._header()) :].decode().split("\n"))
        return True


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig | None) -> None:
        self._engine, self._config = engine, config
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None
        self._compiled = False
        self._pending = [0]  # runs that were enqueued and are not done
        engine.module.contexts.add(self)
        weakref.finalize(self, _check_idle, engine.module.cuda, self._pending)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._engine.module.cuda.enqueue(stream_handle, lambda: None, "choosing a profile")
        self._profile, self._shapes = profile_index, {}
        return 0 <= profile_index < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._profile is None:
            self._engine.module.error("no profile is chosen")
            return False
        least, _, most = (tuple(dims) for dims in self._engine.get_tensor_profile_shape(name, self._profile))
        if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            self._engine.module.error(f"{name} {shape} is outside the profile")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [spec.name for spec in self._engine.inputs if spec.name not in self._shapes]

    def _sizes(self) -> dict[str, int]:
        sizes = {
            axis: size
            for spec in self._engine.inputs
            for axis, size in zip(spec.axes, self._shapes[spec.name], strict=True)
            if isinstance(axis, str)
        }
        # what the model makes of the sizes of its inputs
        if "batch" in sizes:
            sizes.setdefault("samples", sizes["batch"] // 2)
        if "frames" in sizes:
            sizes.setdefault("patch_frames", sizes["frames"])
        if {"height", "width"} <= sizes.keys():
            sizes.setdefault("tokens", sizes["height"] * sizes["width"])
        return self._coded(sizes, self._engine.plan.get("factor", 1), self._engine.plan.get("stretch", 1))

    def _coded(self, sizes: Mapping[str, int], factor: int, stretch: int) -> dict[str, int]:
        """Return the sizes of a VAE's outputs, by those of its inputs."""
        times = {"height": factor, "width": factor, "frames": stretch}
        larger = {f"pixel_{axis}": sizes[axis] * n for axis, n in times.items() if axis in sizes}
        padded = {"height": 0, "width": 0, "frames": stretch - 1}
        smaller = {
            axis: (sizes[f"pixel_{axis}"] + padded[axis]) // n for axis, n in times.items() if f"pixel_{axis}" in sizes
        }
        return {**larger, **smaller, **sizes}

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self._engine.specs[name].shape(self._sizes()))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in self._engine.specs

    def update_device_memory_size_for_shapes(self) -> int:
        if self.infer_shapes():
            return 0
        return self._engine.need([self._shapes[spec.name] for spec in self._engine.inputs])

    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % 256:
            raise RuntimeError("the memory is not aligned")
        if size < self.update_device_memory_size_for_shapes():
            raise RuntimeError("the memory is too small")
        self._memory = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, module = self._engine, self._engine.module
        need = self.update_device_memory_size_for_shapes()
        missing = [name for name in engine.specs if name not in self._addresses] + self.infer_shapes()
        name = engine.plan["function"]
        if missing or name == module.refuse or (need and self._memory is None):
            module.error(f"{name}: not set: {missing}" if missing else f"{name}: no device memory, or refused")
            return False
        self._compile(name)
        tensors = {
            spec.name: (spec, tuple(self.get_tensor_shape(spec.name))) for spec in (*engine.inputs, *engine.outputs)
        }

        def range_of(tensor: str) -> tuple[int, int]:
            spec, shape = tensors[tensor]
            return self._addresses[tensor], math.prod(shape) * NUMPY_DTYPES[spec.dtype].itemsize

        def function(inputs: Sequence[Bytes], outputs: Sequence[Bytes]) -> None:
            given = {
                spec.name: data.view(NUMPY_DTYPES[spec.dtype]).reshape(tensors[spec.name][1])
                for spec, data in zip(engine.inputs, inputs, strict=True)
            }
            results = module.run(name, given)
            for spec, data in zip(engine.outputs, outputs, strict=True):
                value = np.ascontiguousarray(results[spec.name], NUMPY_DTYPES[spec.dtype])
                assert value.shape == tensors[spec.name][1]
                data[:] = value.reshape(-1).view(np.uint8)
            pending[0] -= once

        pending, once = self._pending, int(not module.cuda.capturing())
        pending[0] += once
        reads = [range_of(spec.name) for spec in engine.inputs]
        writes = [range_of(spec.name) for spec in engine.outputs]
        memory = (self._memory[0], need) if self._memory else None
        module.cuda.launch(stream_handle, name, reads, writes, function, memory)
        return True

    def _compile(self, name: str) -> None:
        """The first run compiles, unless the cache has the kernel; a capture cannot hold that."""
        if self._compiled or self._config is None:
            return
        cuda, config = self._engine.module.cuda, self._config
        if cuda.capturing():
            cuda.fault(f"{name} compiles inside a capture")
        if config.cuda_graph_strategy is not CudaGraphStrategy.DISABLED:
            cuda.fault("a graph of the library's own would be captured")
        if config.dynamic_shapes_kernel_specialization_strategy is not DynamicShapesKernelSpecializationStrategy.EAGER:
            cuda.fault("a kernel that is to be replaced could be captured")
        kernel = f"{name} {sorted(self._shapes.items())}"
        if config.cache is None or kernel not in config.cache.kernels:
            self._engine.module.compiled.append(kernel)
        if config.cache is not None:
            config.cache.kernels.add(kernel)
        self._compiled = True


def _check_idle(cuda: FakeCuda, pending: list[int]) -> None:
    if pending[0] > 0:
        cuda.fault("a context is destroyed before its work is done")


def library(module: Module, name: Library = "tensorrt-rtx") -> InstalledLibrary:
    """Return the module as ``open_library`` would return it."""
    errors: list[str] = []
    return InstalledLibrary(name, module, module.__version__, _logger(module, errors), errors)


# bundles


def write_plans(
    bundle: Bundle,
    profiles: Mapping[str, Ranges] = WIDE,
    library: Library = "tensorrt-rtx",
    version: str = VERSION,
    targets: tuple[str, ...] = ("8.9",),
    **changes: dict[str, Any],
) -> Bundle:
    """The bundle with a set of plans; ``changes`` are those of plans' contents, by graph."""
    name = f"{library}-{version}"
    entries = []
    paths: dict[str, PlanEntry] = {}
    for graph in bundle.manifest.graphs():
        content = {
            "magic": MAGIC,
            "version": version,
            "function": graph.name,
            "graph": graph.model_dump(mode="json"),
            "profiles": list(profiles.values()),
            "scratch": SCRATCH,
            **changes.get(graph.name, {}),
        }
        file = Path(ENGINES) / name / f"{graph.name}.plan"
        path = bundle.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        data = path.read_bytes()
        paths[graph.name] = PlanEntry(
            stage=graph.name,
            variant="full",
            graph=graph.name,
            path=file.as_posix(),
            nbytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            graph_sha256=bundle.manifest.files[graph.path].sha256,
            build_s=0.0,
        )
    for stage in bundle.manifest.stages:
        entries.append(paths[stage.graph.name])
        if stage.block:
            entries.append(paths["add"].model_copy(update={"stage": stage.graph.name, "variant": "reuse"}))
    entries += [entry for graph, entry in paths.items() if graph not in {e.stage for e in entries} | {"add"}]
    plans = PlanSet(
        library=library,
        version=version,
        targets=targets,
        precision=bundle.manifest.precision,
        profiles={key: dict(value) for key, value in profiles.items()},
        plans=tuple(entries),
    )
    manifest = bundle.manifest.model_copy(update={"plans": {**bundle.manifest.plans, name: plans}})
    (bundle.folder / MANIFEST).write_text(dump_manifest(manifest), encoding="utf-8")
    return Bundle(bundle.folder, manifest)


def needs(bundle: Bundle, sizes: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """Activation memory of plans at sizes of the axes."""
    graphs = {graph.name: graph for graph in bundle.manifest.graphs()}
    first = {name: graphs[name].inputs[0] for name in names}
    return {
        name: LEAST + SCRATCH * math.prod(spec.shape(sizes)) * NUMPY_DTYPES[spec.dtype].itemsize
        for name, spec in first.items()
    }
