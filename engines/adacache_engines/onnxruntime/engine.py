"""Engines on ONNX Runtime: every graph a session, every tensor bound to a buffer of the caller's."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import NUMPY_DTYPES, DType
from adacache_engines.contract.device import Buffer, Call, Device, HostDevice
from adacache_engines.contract.engine import check_binding
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import EngineError, InputError, MissingDependencyError, require
from adacache_engines.onnxruntime.tiled_attention import tiled
from adacache_engines.onnxruntime.widening import widened

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
ONNX_BFLOAT16 = 16  # TensorProto.BFLOAT16: numpy has no type of its own for it
LOG_ERRORS_ONLY = 3
ARENA_AS_REQUESTED = 1  # grow by what is asked for, not to the next power of two


@functools.cache
def share_threads(runtime: ModuleType, threads: int) -> bool:
    """One thread pool for all sessions of the process; False where it has sessions without one already."""
    try:
        runtime.set_global_thread_pool_sizes(threads, 1)
    except Exception as error:
        return "already been created" in str(error)
    return True


@functools.cache
def _share_arena(runtime: ModuleType) -> None:
    """One activation arena for the sessions of all stages, since they run in turn."""
    memory = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
    arena = runtime.OrtArenaCfg({"arena_extend_strategy": ARENA_AS_REQUESTED})
    with contextlib.suppress(Exception):  # the process has one already, for models of its own
        runtime.create_and_register_allocator(memory, arena)


class OrtEngine:
    """A session of one graph."""

    def __init__(self, graph: Graph, session: Any, device: Device) -> None:
        self.graph = graph
        self._session = session
        self._device = device

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        check_binding(self.graph, tensors)
        binding = self._session.io_binding()
        place = (self._device.kind, self._device.index)
        # an input that shaped the graph but carries no value is optimised away
        used = {node.name for node in self._session.get_inputs()}
        for spec in self.graph.inputs:
            if spec.name in used:
                buffer = tensors[spec.name]
                binding.bind_input(spec.name, *place, _element(spec.dtype), buffer.shape, buffer.address)
        for spec in self.graph.outputs:
            buffer = tensors[spec.name]
            binding.bind_output(spec.name, *place, _element(spec.dtype), buffer.shape, buffer.address)
        run, held = self._session.run_with_iobinding, dict(tensors)

        def call() -> None:
            try:
                run(binding)
            except Exception as error:
                shapes = ", ".join(f"{name} {buffer.shape}" for name, buffer in held.items())
                raise EngineError(f"engine {self.graph.name} failed on {shapes}: {error}") from error

        return call

    def workspace_nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """ONNX Runtime's arena grows while it runs."""


def _element(dtype: DType) -> Any:
    return ONNX_BFLOAT16 if dtype == "bfloat16" else NUMPY_DTYPES[dtype].type


class OrtBackend:
    """Loads a bundle's graphs into ONNX Runtime.

    Args:
        folder: the bundle.
        provider: ``cpu``, ``cuda`` or ``tensorrt``; never falls back to another.
        threads: 0 = one a core; of the shared pool, the first back end of the process decides.
        shared_threads: all engines run on one pool, which is faster. ONNX Runtime then refuses sessions with a pool of
            their own anywhere in the process: False where it has such sessions.
        rewrites: graphs are rewritten for the CPU: attention by tiles, bfloat16 in float32. False = each as it is.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        InputError: the provider is unknown, or this onnxruntime was built without it.
    """

    def __init__(
        self,
        folder: Path,
        provider: str = "cpu",
        threads: int = 0,
        shared_threads: bool = True,
        rewrites: bool = True,
    ) -> None:
        self._runtime = require("onnxruntime", "gpu" if provider != "cpu" else "cpu")
        if provider not in PROVIDERS:
            raise InputError(f"provider {provider!r} is unknown; known: {', '.join(PROVIDERS)}")
        self._provider = PROVIDERS[provider]
        if self._provider not in self._runtime.get_available_providers():
            extra = "cpu" if provider == "cpu" else "gpu"
            raise InputError(
                f"this onnxruntime has no {self._provider}; install the one that has it: "
                f'pip install "adacache-export[{extra}]"'
            )
        self.name = f"onnxruntime {self._provider}" + ("" if rewrites else ", graphs as exported")
        # it allocates while it runs, which no graph can hold
        self.device: Device = HostDevice() if provider == "cpu" else CudaDevice(graphs=False)
        self._folder = folder
        self._rewrites = rewrites
        self._threads = threads
        self._shared_threads = shared_threads and share_threads(self._runtime, threads)
        _share_arena(self._runtime)

    def weights_nbytes(self, graphs: Sequence[Graph]) -> None:
        """In the one file."""

    def load(self, graph: Graph) -> OrtEngine:
        return OrtEngine(graph, self.session(graph), self.device)

    def session(self, graph: Graph, trace: Path | None = None) -> Any:
        """The ONNX Runtime session that an engine runs on.

        Args:
            graph: of the bundle.
            trace: how the name of a file begins that the session writes with the time of every layer, when its
                ``end_profiling()`` is called.

        Raises:
            EngineError: ONNX Runtime cannot run the graph; says why.
        """
        options = self._options()
        if trace:
            options.enable_profiling, options.profile_file_prefix = True, str(trace)
        path = self._folder / graph.path
        dtypes = {*(spec.dtype for spec in (*graph.inputs, *graph.outputs)), *graph.weight_dtypes}
        try:
            model: str | bytes = str(path)
            if self._rewrites and self._provider == PROVIDERS["cpu"]:
                model = (widened(path) if "bfloat16" in dtypes else tiled(path)) or model
            if isinstance(model, bytes):
                folder = str(path.parent)
                options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
            session = self._runtime.InferenceSession(model, options, providers=self._providers())
        except MissingDependencyError:
            raise
        except Exception as error:
            raise EngineError(f"{self.name} cannot load {path}: {error}") from error
        if self._provider not in session.get_providers():
            # onnxruntime logs why, and would go on with the CPU
            raise EngineError(f"onnxruntime could not start {self._provider} for {path}; its log says why")
        return session

    def _options(self) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = LOG_ERRORS_ONLY
        if self._shared_threads:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = self._threads
            # the idle pools of all other stages would take the processors
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.use_env_allocators", "1")
        # else each session wants its activations in one piece, beside the pieces that its first run left in the arena
        options.enable_mem_pattern = False
        return options

    def _providers(self) -> list[str | tuple[str, dict[str, str]]]:
        """The provider, on the device's stream; what TensorRT leaves is CUDA's."""
        if not isinstance(self.device, CudaDevice):
            return [self._provider]
        options = {"device_id": str(self.device.index), "user_compute_stream": str(self.device.stream)}
        names = dict.fromkeys([self._provider, PROVIDERS["cuda"]])
        # float32 products have float32's precision, here as elsewhere
        return [(name, {**options, "use_tf32": "0"} if name == PROVIDERS["cuda"] else options) for name in names]

    def close(self) -> None:
        """Sessions are freed with the engines that hold them."""
