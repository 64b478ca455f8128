"""A stand-in for onnxruntime-gpu whose graphs are numpy functions on the device memory of :class:`fake_cuda.FakeCuda`.

It answers as onnxruntime-gpu 1.31.1 did when its CUDA provider was loaded on a machine without a GPU, over a CUDA
runtime that only writes down what it is asked for: it lists providers that cannot start, takes the CPU in silence
where a library is missing, refuses an unknown setting of a provider, waits for the stream after each run unless it is
told not to, and has one arena for each session unless one was registered for all. A shared arena hands out memory as
soon as it is returned, whichever stream still reads it; here that is a fault.
"""

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import ELEMENT_TYPES, NUMPY_DTYPES
from adacache_engines.contract.fake import Function
from adacache_engines.onnxruntime.provider import SMALLEST_MODEL
from tests.helpers.gpu.fake_cuda import Bytes, FakeCuda

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
NO_WAITING = "disable_synchronize_execution_providers"
SHARED, WEIGHTS_APART = "session.use_env_allocators", "session.use_device_allocator_for_initializers"
SESSION_ENTRIES = {SHARED, WEIGHTS_APART, "session.intra_op.allow_spinning"}
CUDA_OPTIONS = {"device_id", "user_compute_stream", "use_tf32", "cudnn_conv_algo_search", "arena_extend_strategy"}
SCRATCH = 4096  # bytes of activations of each graph
WEIGHTS = 512  # bytes of weights of each graph
VECTOR = 16  # bytes that a kernel may read at once, at an address that is a multiple of it


class Entries:
    """Options that are set by text."""

    known: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def _add(self, key: str, value: str) -> None:
        assert key in self.known, f"ONNX Runtime would ignore {key} without a word"
        assert isinstance(value, str)
        self.entries[key] = value


class SessionOptions(Entries):
    known = frozenset(SESSION_ENTRIES)
    log_severity_level = -1
    use_per_session_threads = True
    intra_op_num_threads = 0
    enable_mem_pattern = True
    enable_profiling = False
    profile_file_prefix = ""

    def add_session_config_entry(self, key: str, value: str) -> None:
        self._add(key, value)


class RunOptions(Entries):
    known = frozenset({NO_WAITING})

    def add_run_config_entry(self, key: str, value: str) -> None:
        self._add(key, value)


@dataclass(frozen=True)
class OrtMemoryInfo:
    name: str
    allocator_type: str
    device_id: int
    mem_type: str


@dataclass(eq=False)
class Arena:
    """Device memory that is handed out again and never given back before the arena goes.

    Attributes:
        strategy: how it grows; 1 = by what is asked for.
        streams: streams of the sessions that use it.
    """

    cuda: FakeCuda
    strategy: int
    streams: set[int] = field(default_factory=set)
    _address: int | None = None

    def scratch(self, stream: int) -> tuple[int, int]:
        self.streams.add(stream)
        if len(self.streams) > 1:
            self.cuda.fault("memory of an arena is used on a second stream, which nothing orders behind the first")
        if self._address is None:
            self._address = int(self.cuda.cudaMalloc(SCRATCH)[1] or 0)
            weakref.finalize(self, self.cuda.cudaFree, self._address)
        return self._address, SCRATCH


class IOBinding:
    def __init__(self, session: "InferenceSession", graph: Graph) -> None:
        self.session, self.graph = session, graph
        self.inputs: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.outputs: dict[str, tuple[int, tuple[int, ...]]] = {}

    def bind_input(self, name: str, *tensor: Any) -> None:
        self._bind(self.graph.inputs, self.inputs, name, *tensor)

    def bind_output(self, name: str, *tensor: Any) -> None:
        self._bind(self.graph.outputs, self.outputs, name, *tensor)

    def _bind(
        self, specs: Any, bound: Any, name: str, kind: str, index: int, element: Any, shape: Any, address: int
    ) -> None:
        spec = {spec.name: spec for spec in specs}[name]
        wanted = ELEMENT_TYPES[spec.dtype]
        assert (kind, index) == ("cuda", 0)
        assert element == (wanted.onnx if spec.dtype == "bfloat16" else wanted.numpy.type)
        # where the innermost axis has whole vectors, kernels may read and write it by vectors
        vector = math.gcd(VECTOR, (shape[-1] if len(shape) else 1) * wanted.numpy.itemsize)
        if address % vector:
            self.session.module.cuda.fault(f"{name} of {self.graph.name} is not aligned to {vector} bytes")
        bound[name] = (address, tuple(shape))


class InferenceSession:
    """A session on CUDA, or on the CPU where CUDA's libraries are missing."""

    def __init__(
        self,
        module: "Module",
        model: str | bytes,
        options: SessionOptions,
        providers: Sequence[str | tuple[str, Mapping[str, str]]],
        enable_fallback: int = 1,
    ) -> None:
        self.module, self.options = module, options
        self.settings = dict(entry if isinstance(entry, tuple) else (entry, {}) for entry in providers)
        assert set(self.settings) <= {CUDA, CPU}
        self._providers = [CPU]
        if CUDA in self.settings and not module.missing:
            try:
                self._start(self.settings[CUDA])
            except RuntimeError:
                if not enable_fallback:
                    raise
        self.graph: Graph | None = None
        if model != SMALLEST_MODEL:
            assert isinstance(model, str)
            self.graph = module.graphs[Path(model).read_text().removeprefix("the graph of ")]
        if CUDA not in self._providers or self.graph is None:
            return
        self.stream = int(self.settings[CUDA]["user_compute_stream"])
        shared = module.arena if options.entries.get(SHARED) == "1" else None
        self.arena = shared or Arena(module.cuda, int(self.settings[CUDA].get("arena_extend_strategy", "0")))
        if options.entries.get(WEIGHTS_APART) != "1":
            module.cuda.fault("weights are copied into an arena on a stream that nothing orders")
        weights = int(module.cuda.cudaMalloc(WEIGHTS)[1] or 0)
        weakref.finalize(self, module.cuda.cudaFree, weights)
        module.sessions.append(weakref.ref(self))

    def _start(self, settings: Mapping[str, str]) -> None:
        for key, value in settings.items():
            assert isinstance(value, str)
            if key not in CUDA_OPTIONS:
                raise RuntimeError(f'Unknown provider option: "{key}".')
        if self.module.failure:
            raise RuntimeError(self.module.failure)
        self._providers = [CUDA, CPU]

    def get_providers(self) -> list[str]:
        return self._providers

    def get_inputs(self) -> list[Any]:
        assert self.graph is not None
        return [SimpleNamespace(name=spec.name) for spec in self.graph.inputs]

    def io_binding(self) -> IOBinding:
        assert self.graph is not None
        return IOBinding(self, self.graph)

    def run_with_iobinding(self, binding: IOBinding, run_options: RunOptions | None = None) -> None:
        graph, module = self.graph, self.module
        assert graph is not None
        if binding.session is not self:
            raise ValueError("IOBinding must be used with the session that created it.")
        if graph.name in module.refused:
            raise RuntimeError(f"Non-zero status code returned while running {graph.name}")
        tensors = [
            *((spec, *binding.inputs[spec.name]) for spec in graph.inputs),
            *((spec, *binding.outputs[spec.name]) for spec in graph.outputs),
        ]
        ranges = [(address, math.prod(shape) * NUMPY_DTYPES[spec.dtype].itemsize) for spec, address, shape in tensors]
        count = len(graph.inputs)

        def function(inputs: Sequence[Bytes], outputs: Sequence[Bytes]) -> None:
            given = {
                spec.name: data.view(NUMPY_DTYPES[spec.dtype]).reshape(shape)
                for (spec, _, shape), data in zip(tensors[:count], inputs, strict=True)
            }
            results = module.functions[graph.name](given)
            for (spec, _, shape), data in zip(tensors[count:], outputs, strict=True):
                value = np.ascontiguousarray(results[spec.name], NUMPY_DTYPES[spec.dtype])
                assert value.shape == shape
                data[:] = value.reshape(-1).view(np.uint8)

        scratch = self.arena.scratch(self.stream)
        module.cuda.launch(self.stream, graph.name, ranges[:count], ranges[count:], function, scratch)
        if run_options is None or run_options.entries.get(NO_WAITING) != "1":
            module.cuda.cudaStreamSynchronize(self.stream)


# inside the module's class, these names are the module's
Memory = OrtMemoryInfo
Options = SessionOptions
Session = InferenceSession


class Module:
    """The part of onnxruntime-gpu that is used.

    Args:
        cuda: the GPU.
        graphs: the bundle's graphs.
        functions: what each graph computes, by its name.
        folder: folder of the package's files.

    Attributes:
        arena: the arena that was registered for all sessions on the GPU.
        missing: whether a library that the CUDA provider is linked to cannot be loaded.
        failure: what the CUDA provider says when it does not start; empty = it starts.
        refused: names of graphs whose runs fail.
        preloads: folders that ``preload_dlls`` was given; None = the one beside the package.
        sessions: sessions on the GPU that run graphs of the bundle.
    """

    OrtAllocatorType = SimpleNamespace(ORT_ARENA_ALLOCATOR="arena", ORT_DEVICE_ALLOCATOR="device")
    OrtMemType = SimpleNamespace(DEFAULT="default")
    OrtMemoryInfo = OrtMemoryInfo
    SessionOptions, RunOptions = SessionOptions, RunOptions

    def __init__(
        self, cuda: FakeCuda, graphs: Sequence[Graph], functions: Mapping[str, Function], folder: Path
    ) -> None:
        self.cuda, self.functions = cuda, functions
        self.graphs = {graph.name: graph for graph in graphs}
        self.arena: Arena | None = None
        self.missing = False
        self.failure = ""
        self.refused: set[str] = set()
        self.preloads: list[str | None] = []
        self.sessions: list[weakref.ref[Session]] = []
        self.__file__ = str(folder / "__init__.py")

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def preload_dlls(self, directory: str | None = None) -> None:
        self.preloads.append(directory)
        if self.missing:
            print("Failed to load libcublasLt.so.13")  # noqa: T201 - as the real one does

    def set_global_thread_pool_sizes(self, intra: int, inter: int) -> None:
        assert (intra, inter) == (0, 1)

    def OrtArenaCfg(self, settings: Mapping[str, int]) -> int:
        assert set(settings) == {"arena_extend_strategy"}
        return settings["arena_extend_strategy"]

    def create_and_register_allocator(self, memory: Memory, arena: int) -> None:
        assert memory == Memory("Cpu", "arena", 0, "default")

    def create_and_register_allocator_v2(
        self, provider: str, memory: Memory, options: Mapping[str, str], arena: int
    ) -> None:
        if self.missing:
            raise RuntimeError("CUDA Provider not available, can't get interface for it")
        assert provider == CUDA
        assert memory == Memory("Cuda", "arena", 0, "default")
        assert options == {"device_id": "0"}
        self.arena = Arena(self.cuda, arena)

    def InferenceSession(self, model: str | bytes, options: Options, **settings: Any) -> Session:
        return Session(self, model, options, **settings)
