"""ONNX Runtime as a backend: what can be chosen, and how it loads a bundle's graphs."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Graph
from adacache_engines.contract.device import Device, HostDevice
from adacache_engines.contract.options import one_of, option, whole_number
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import EngineError, InputError, MissingDependencyError, require
from adacache_engines.onnxruntime.engine import OrtEngine
from adacache_engines.passes.graph_pass import rewritten
from adacache_engines.passes.tiled_attention import TILED_ATTENTION
from adacache_engines.passes.widening import WIDENING

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
CPU_PASSES = (WIDENING, TILED_ATTENTION)
LOG_ERRORS_ONLY = 3
ARENA_AS_REQUESTED = 1  # grow by what is asked for, not to the next power of two


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime, on the processor or on an NVIDIA GPU. It needs nothing but the bundle's ONNX graphs.

    Attributes:
        provider: ``cpu``, ``cuda`` or ``tensorrt``; ONNX Runtime never falls back to another.
        threads: number of threads of an operator; 0 = one for each core. The first backend of the process decides for
            the pool that is shared.
        shared_threads: whether all engines run on one pool of threads, which is faster. ONNX Runtime then refuses
            sessions with a pool of their own anywhere in the process: set False where it has such sessions.
        rewrites: whether graphs are rewritten for the CPU: attention by tiles, bfloat16 in float32.

    Raises:
        InputError: the provider is unknown, or the number of threads is negative.
    """

    provider: str = option(
        "cpu",
        "execution provider of ONNX Runtime, which computes everything (default: cpu)",
        "{" + ",".join(PROVIDERS) + "}",
        one_of(*PROVIDERS),
    )
    threads: int = option(
        0, "number of threads that compute an operator (default: one for each core)", "N", whole_number
    )
    shared_threads: bool = option(True, "run all engines on one pool of threads, which is faster (default: yes)")
    rewrites: bool = option(
        True, "rewrite graphs for the CPU instead of running them as they were exported (default: yes)"
    )

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise InputError(f"provider {self.provider!r} is unknown; known: {', '.join(PROVIDERS)}")
        if self.threads < 0:
            raise InputError(f"{self.threads} threads are not possible; give 1 or more, or 0 for one for each core")

    def open(self, bundle: Bundle) -> "OrtBackend":
        """Open ONNX Runtime on a bundle; raises what :class:`OrtBackend` raises."""
        return OrtBackend(bundle.folder, self)


@functools.cache
def share_threads(runtime: ModuleType, threads: int) -> bool:
    """Set up one pool of threads for all sessions; return False where the process already has sessions without one."""
    try:
        runtime.set_global_thread_pool_sizes(threads, 1)
    except Exception as error:
        return "already been created" in str(error)
    return True


@functools.cache
def _share_arena(runtime: ModuleType) -> None:
    """Set up one arena of activations for the sessions of all stages, since they run in turn."""
    memory = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
    arena = runtime.OrtArenaCfg({"arena_extend_strategy": ARENA_AS_REQUESTED})
    with contextlib.suppress(Exception):  # the process has one already, for models of its own
        runtime.create_and_register_allocator(memory, arena)


class OrtBackend:
    """ONNX Runtime, opened on a bundle's folder.

    Args:
        folder: folder that the paths of graphs are relative to.
        config: provider, threads and rewrites; None = the defaults.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        InputError: this onnxruntime was built without the provider.
    """

    def __init__(self, folder: Path, config: OnnxRuntime | None = None) -> None:
        config = config or OnnxRuntime()
        provider, threads = config.provider, config.threads
        self._runtime = require("onnxruntime", "gpu" if provider != "cpu" else "cpu")
        self._provider = PROVIDERS[provider]
        if self._provider not in self._runtime.get_available_providers():
            extra = "cpu" if provider == "cpu" else "gpu"
            raise InputError(
                f"this onnxruntime has no {self._provider}; install the one that has it: "
                f'pip install "adacache-export[{extra}]"'
            )
        self.name = f"onnxruntime {self._provider}" + ("" if config.rewrites else ", graphs as exported")
        # it allocates while it runs, which no graph can hold
        self.device: Device = HostDevice() if provider == "cpu" else CudaDevice(graphs=False)
        self._folder = folder
        self._rewrites = config.rewrites
        self._threads = threads
        self._shared_threads = config.shared_threads and share_threads(self._runtime, threads)
        _share_arena(self._runtime)

    def weights_nbytes(self, graphs: Sequence[Graph]) -> None:
        """Return None: the weights stay in the bundle's one file."""

    def load(self, graph: Graph) -> OrtEngine:
        return OrtEngine(graph, self.session(graph), self.device)

    def session(self, graph: Graph, trace: Path | None = None) -> Any:
        """Return the ONNX Runtime session that an engine runs on.

        Args:
            graph: a graph of the bundle.
            trace: beginning of the name of a file that the session writes, with the time of every layer, when its
                ``end_profiling()`` is called; None = no such file.

        Raises:
            EngineError: ONNX Runtime cannot run the graph; says why.
        """
        options = self._options()
        if trace:
            options.enable_profiling, options.profile_file_prefix = True, str(trace)
        path = self._folder / graph.path
        try:
            model: str | bytes = str(path)
            if self._rewrites and self._provider == PROVIDERS["cpu"]:
                model = rewritten(path, graph, CPU_PASSES, "cpu") or model
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
        """Return the provider and its settings; CUDA's takes the operators that TensorRT's leaves."""
        if not isinstance(self.device, CudaDevice):
            return [self._provider]
        options = {"device_id": str(self.device.index), "user_compute_stream": str(self.device.stream)}
        names = dict.fromkeys([self._provider, PROVIDERS["cuda"]])
        # float32 products have float32's precision, here as elsewhere
        return [(name, {**options, "use_tf32": "0"} if name == PROVIDERS["cuda"] else options) for name in names]

    def close(self) -> None:
        """Sessions are freed with the engines that hold them."""
