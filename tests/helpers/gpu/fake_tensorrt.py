"""A stand-in for ``tensorrt_rtx`` and ``tensorrt``: plans are small files that name a numpy function.

It runs on the device memory of :class:`fake_cuda.FakeCuda` and fails as the real libraries do: by False or None, with
the reason in the log. What would be undefined there is a fault here: an address that is not aligned, an output that
overlaps another tensor, an object that is destroyed before those that use it, and a recording of a context that has not
run with its shapes or was not asked whether it can be recorded.
"""

import enum
import functools
import hashlib
import json
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from adacache_engines.bundle.files import MANIFEST, Bundle, dump_manifest
from adacache_engines.bundle.manifest import Graph, Library, PlanEntry, PlanSet
from adacache_engines.bundle.tensors import ELEMENT_TYPES, NUMPY_DTYPES, TensorSpec
from adacache_engines.contract.fake import Function
from adacache_engines.tensorrt.library import InstalledLibrary, _logger
from adacache_engines.tensorrt.plans import ENGINES
from adacache_runtime.pipeline import Pipeline
from tests.helpers.gpu.fake_cuda import Bytes, FakeCuda
from tests.helpers.model.fake_model import functions

MAGIC = "a plan"
CACHE_MAGIC = b"kernels of "
VERSION = "1.7"
SCRATCH = 16  # bytes of activation memory for each byte of a plan's first input
LEAST = 512  # and for any input
ALIGNMENT = 256
IN_PLACE = {  # graphs of one element-wise kernel, by the input and the output that may be the same memory
    "add": ("hidden", "hidden_out"),
    "blend": ("hidden", "hidden_out"),
    "select": ("latents", "latents_out"),
}

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


class EngineValidity(enum.Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(enum.IntFlag):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2


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


@dataclass(eq=False)
class Life:
    """The life of an object of the library, which uses others until it is gone and keeps none of them alive.

    Attributes:
        cuda: records the faults.
        what: name of the object in faults.
        uses: lives of the objects that it uses.
        users: number of living objects that use it.
    """

    cuda: FakeCuda
    what: str
    uses: tuple["Life", ...] = ()
    users: int = 0

    def __post_init__(self) -> None:
        for used in self.uses:
            used.users += 1

    def end(self) -> None:
        for used in self.uses:
            used.users -= 1
        if self.users:
            self.cuda.faults.append(f"{self.what} is destroyed while {self.users} objects use it")


def living(owner: object, cuda: FakeCuda, what: str, *uses: Life) -> Life:
    """Return the life of an object, which ends when Python forgets the object."""
    life = Life(cuda, what, uses)
    _at_death(owner, life.end)
    return life


def _at_death(owner: object, action: Callable[[], None]) -> None:
    """Do something when an object is forgotten, but not at the end of the process."""
    weakref.finalize(owner, action).atexit = False


Class = TypeVar("Class", bound=type)


def interrupted(cls: Class) -> Class:
    """Let ``Module.interrupt`` come before each public method, as the garbage collector may."""

    def before(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(self: Any, *arguments: Any, **named: Any) -> Any:
            if self.module.interrupt is not None:
                self.module.interrupt()
            return method(self, *arguments, **named)

        return call

    for name, method in list(vars(cls).items()):
        if callable(method) and not name.startswith("_"):
            setattr(cls, name, before(method))
    return cls


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


@interrupted
class Runtime:
    def __init__(self, module: Module) -> None:
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


class Contents:
    """The contents of a plan, which its engine and its contexts know."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.inputs = Graph.model_validate(plan["graph"]).inputs
        self.outputs = Graph.model_validate(plan["graph"]).outputs
        self.specs: dict[str, TensorSpec] = {spec.name: spec for spec in (*self.inputs, *self.outputs)}

    def profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        ranges = self.plan["profiles"][profile_index]
        return [Dims(self.specs[name].shape({axis: r[end] for axis, r in ranges.items()})) for end in range(3)]

    def need(self, shapes: Sequence[tuple[int, ...]]) -> int:
        if not self.plan["scratch"]:
            return 0
        item = NUMPY_DTYPES[self.inputs[0].dtype].itemsize
        return LEAST + int(self.plan["scratch"]) * math.prod(shapes[0]) * item


@interrupted
class ICudaEngine:
    def __init__(self, module: Module, contents: Contents, runtime: Life) -> None:
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
    def __init__(self, module: Module, engine: Life) -> None:
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
    def __init__(self, module: Module) -> None:
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


@interrupted
class IExecutionContext:
    def __init__(self, module: Module, contents: Contents, settings: Settings | None, uses: Sequence[Life]) -> None:
        self.module, self._contents, self._settings = module, contents, settings
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None
        self._ran_with: dict[str, tuple[int, ...]] | None = None  # shapes of the last run that was no recording
        self._asked = False
        self._pending = [0]  # runs that were enqueued and are not done
        module.contexts.add(self)
        module.made += 1
        living(self, module.cuda, f"a context of {contents.plan['function']}", *uses)
        _at_death(self, functools.partial(_check_idle, module.cuda, self._pending))

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.module.cuda.enqueue(stream_handle, lambda: None, "choosing a profile")
        self._profile, self._shapes = profile_index, {}
        return 0 <= profile_index < len(self._contents.plan["profiles"])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._profile is None:
            self.module.error("no profile is chosen")
            return False
        least, _, most = (tuple(dims) for dims in self._contents.profile_shape(name, self._profile))
        if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            self.module.error(f"{name} {shape} is outside the profile")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [spec.name for spec in self._contents.inputs if spec.name not in self._shapes]

    def _sizes(self) -> dict[str, int]:
        sizes = {
            axis: size
            for spec in self._contents.inputs
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
        return self._coded(sizes, self._contents.plan.get("factor", 1), self._contents.plan.get("stretch", 1))

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
        return Dims(self._contents.specs[name].shape(self._sizes()))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory % ALIGNMENT:
            self.module.cuda.fault(f"{name} of {self._contents.plan['function']} is bound at {memory:#x}: not aligned")
        self._addresses[name] = memory
        return name in self._contents.specs

    def update_device_memory_size_for_shapes(self) -> int:
        if self.infer_shapes():
            return 0
        return self._contents.need([self._shapes[spec.name] for spec in self._contents.inputs])

    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % ALIGNMENT:
            raise RuntimeError("the memory is not aligned")
        if size < self.update_device_memory_size_for_shapes():
            raise RuntimeError("the memory is too small")
        self._memory = (memory, size)

    def is_stream_capturable(self, stream: int) -> bool:
        if self.module.cuda.capturing():
            self.module.cuda.fault("a context is asked whether it can be recorded when the recording has begun")
        self._asked = True
        return self.module.capturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        contents, module = self._contents, self.module
        need = self.update_device_memory_size_for_shapes()
        missing = [name for name in contents.specs if name not in self._addresses] + self.infer_shapes()
        name = contents.plan["function"]
        if missing or name == module.refuse or (need and self._memory is None):
            module.error(f"{name}: not set: {missing}" if missing else f"{name}: no device memory, or refused")
            return False
        tensors = {
            spec.name: (spec, tuple(self.get_tensor_shape(spec.name))) for spec in (*contents.inputs, *contents.outputs)
        }

        def range_of(tensor: str) -> tuple[int, int]:
            spec, shape = tensors[tensor]
            return self._addresses[tensor], math.prod(shape) * NUMPY_DTYPES[spec.dtype].itemsize

        ranges = {tensor: range_of(tensor) for tensor in tensors}
        self._check_overlaps(name, ranges)
        self._prepare(name)

        def function(inputs: Sequence[Bytes], outputs: Sequence[Bytes]) -> None:
            given = {
                spec.name: data.view(NUMPY_DTYPES[spec.dtype]).reshape(tensors[spec.name][1])
                for spec, data in zip(contents.inputs, inputs, strict=True)
            }
            results = module.run(name, given)
            for spec, data in zip(contents.outputs, outputs, strict=True):
                value = np.ascontiguousarray(results[spec.name], NUMPY_DTYPES[spec.dtype])
                assert value.shape == tensors[spec.name][1]
                data[:] = value.reshape(-1).view(np.uint8)
            pending[0] -= once

        pending, once = self._pending, int(not module.cuda.capturing())
        pending[0] += once
        reads = [ranges[spec.name] for spec in contents.inputs]
        writes = [ranges[spec.name] for spec in contents.outputs]
        memory = (self._memory[0], need) if self._memory else None
        module.cuda.launch(stream_handle, name, reads, writes, function, memory)
        return True

    def _check_overlaps(self, name: str, ranges: Mapping[str, tuple[int, int]]) -> None:
        """An output is written while inputs are still read, and may hold what other outputs are made of."""
        for output in self._contents.outputs:
            start, nbytes = ranges[output.name]
            for other, (address, size) in ranges.items():
                if other == output.name or address >= start + nbytes or start >= address + size:
                    continue
                if (other, output.name) != IN_PLACE.get(name) or (address, size) != (start, nbytes):
                    self.module.cuda.fault(f"{output.name} of {name} overlaps {other}")

    def _prepare(self, name: str) -> None:
        """The first run with its shapes compiles, unless the cache has the kernel; a capture cannot hold that."""
        cuda, settings = self.module.cuda, self._settings
        if cuda.capturing():
            if self._ran_with != self._shapes:
                cuda.fault(f"{name} has not run with its shapes before it is recorded")
            if settings is not None and not self._asked:
                cuda.fault(f"{name} is recorded and was not asked whether it can be")
            if settings is not None and not self.module.capturable:
                cuda.fault(f"{name} is recorded and cannot be")
        first, self._ran_with = self._ran_with != self._shapes, dict(self._shapes)
        if settings is None or not first:
            return
        if settings.graphs is not CudaGraphStrategy.DISABLED:
            cuda.fault("a graph of the library's own would be captured")
        if settings.kernels is not DynamicShapesKernelSpecializationStrategy.EAGER:
            cuda.fault("a kernel that is to be replaced could be captured")
        kernel = f"{name} {sorted(self._shapes.items())}"
        if settings.cache is None or kernel not in settings.cache.names:
            self.module.compiled.append(kernel)
        if settings.cache is not None:
            settings.cache.names.add(kernel)


def _check_idle(cuda: FakeCuda, pending: list[int]) -> None:
    if pending[0] > 0:
        cuda.faults.append("a context is destroyed before its work is done")


def library(module: Module, name: Library = "tensorrt-rtx") -> InstalledLibrary:
    """Return the module as ``open_library`` would return it."""
    errors: list[str] = []
    return InstalledLibrary(name, module, module.__version__, _logger(module, errors), errors)


@dataclass(frozen=True)
class Machine:
    """A pipeline on the fakes."""

    pipeline: Pipeline
    module: Module
    cuda: FakeCuda
    bundle: Bundle


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
            "targets": targets,
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
