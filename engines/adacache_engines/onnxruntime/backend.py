"""ONNX Runtime as a backend: what can be chosen, and how it loads a bundle's graphs."""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Graph
from adacache_engines.contract.device import Device, HostDevice
from adacache_engines.contract.options import one_of, option, whole_number
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import EngineError, InputError, MissingDependencyError
from adacache_engines.onnxruntime.engine import OrtEngine
from adacache_engines.onnxruntime.provider import (
    PROVIDERS,
    check_starts,
    import_onnxruntime,
    settings,
    share_arena,
    shared_device,
)
from adacache_engines.passes.attention_by_rows import ATTENTION_BY_ROWS
from adacache_engines.passes.graph_pass import rewritten
from adacache_engines.passes.tiled_attention import TILED_ATTENTION
from adacache_engines.passes.widening import CUDA_WIDENING, WIDENING

CPU_PASSES = (WIDENING, TILED_ATTENTION)
CUDA_PASSES = (ATTENTION_BY_ROWS, CUDA_WIDENING)
LOG_ERRORS_ONLY = 3
MAX_THREADS = 1024  # more than any machine has use for, and fewer than a system refuses to start


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime, on the processor or on an NVIDIA GPU. It needs nothing but the bundle's ONNX graphs.

    Attributes:
        provider: ``cpu``, ``cuda`` or ``tensorrt``; ONNX Runtime never falls back to another.
        threads: number of threads of an operator; 0 = one for each core. The first backend of the process decides for
            the pool that is shared.
        shared_threads: whether all engines run on one pool of threads, which is faster. ONNX Runtime then refuses
            sessions with a pool of their own anywhere in the process: set False where it has such sessions.
        rewrites: whether graphs are rewritten for the provider: on the CPU attention by tiles, and bfloat16 in float32;
            on a GPU attention by rows, and bfloat16 in float32 for the operators that lack it.

    Raises:
        InputError: the provider is unknown, or the number of threads is negative or too large.
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
        True, "rewrite graphs for the provider instead of running them as they were exported (default: yes)"
    )

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise InputError(f"provider {self.provider!r} is unknown; known: {', '.join(PROVIDERS)}")
        if not 0 <= self.threads <= MAX_THREADS:
            given = self.threads if self.threads < 10**12 else "so many"
            raise InputError(f"{given} threads are not possible; give 1 to {MAX_THREADS}, or 0 for one for each core")

    def open(self, bundle: Bundle) -> "OrtBackend":
        """Open ONNX Runtime on a bundle; raises what :class:`OrtBackend` raises."""
        return OrtBackend(bundle, self)


@functools.cache
def share_threads(runtime: ModuleType, threads: int) -> bool:
    """Set up one pool of threads for all sessions; return False where the process already has sessions without one."""
    try:
        runtime.set_global_thread_pool_sizes(threads, 1)
    except Exception as error:
        return "already been created" in str(error)
    return True


class OrtBackend:
    """ONNX Runtime, opened on a bundle.

    Args:
        source: the opened bundle, of which a file that was changed since is refused; or the folder of a bundle that is
            being written.
        config: provider, threads and rewrites; None = the defaults.
        device: device that holds the buffers; None = the one of the provider. On a GPU, all of a process's backends
            must have the same: see :func:`adacache_engines.onnxruntime.provider.shared_device`.

    Raises:
        MissingDependencyError: onnxruntime, or a library that the provider is linked to, is not installed.
        InputError: this onnxruntime was built without the provider.
        EngineError: there is no GPU, or the provider does not start on it.
    """

    def __init__(self, source: Bundle | Path, config: OnnxRuntime | None = None, device: Device | None = None) -> None:
        config = config or OnnxRuntime()
        self._runtime = import_onnxruntime(config.provider)
        self._provider = config.provider
        self.name = f"onnxruntime {PROVIDERS[config.provider]}"
        self.name += "" if config.rewrites else ", graphs as exported"
        self.device: Device = device or (HostDevice() if config.provider == "cpu" else shared_device())
        self._source = source
        self._rewrites = config.rewrites
        self._threads = config.threads
        self._shared_threads = config.shared_threads and share_threads(self._runtime, config.threads)
        self._settings = settings(config.provider, self.device)
        share_arena(self._runtime)
        if isinstance(self.device, CudaDevice):
            check_starts(self._runtime, config.provider, self._settings, self._options())
            share_arena(self._runtime, self.device.index)

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the execution provider."""
        return PROVIDERS[self._provider]

    def weights_nbytes(self, graphs: Sequence[Graph]) -> int | None:
        """Return the bytes of device memory for these graphs' weights.

        Each session on a GPU has copies of its weights; the CPU's read the bundle's one file. None = they stay in that
        file, or they were not counted at export.
        """
        if not isinstance(self.device, CudaDevice):
            return None
        known = [graph.weights_nbytes for graph in graphs if graph.weights_nbytes is not None]
        return sum(known) if len(known) == len(graphs) else None

    def load(self, graph: Graph) -> OrtEngine:
        return self.engine(graph, self.session(graph))

    def engine(self, graph: Graph, session: Any) -> OrtEngine:
        """Return the engine that runs a graph on one of this backend's sessions."""
        return OrtEngine(graph, session, self.device, self._runtime)

    def session(self, graph: Graph, trace: Path | None = None) -> Any:
        """Return the ONNX Runtime session that an engine runs on.

        Args:
            graph: a graph of the bundle.
            trace: beginning of the name of a file that the session writes, with the time of every layer, when its
                ``end_profiling()`` is called; None = no such file.

        Raises:
            EngineError: ONNX Runtime cannot run the graph; says why.
            BundleError: the graph or its weights were changed after the bundle was opened.
        """
        with self._reading(graph) as path:
            return self._session(path, graph, trace)

    def _reading(self, graph: Graph) -> AbstractContextManager[Path]:
        if isinstance(self._source, Path):
            return nullcontext(self._source / graph.path)
        return self._source.reading(graph.path, self._source.manifest.weight_files()[graph.name])

    def _session(self, path: Path, graph: Graph, trace: Path | None) -> Any:
        options = self._options()
        if trace:
            options.enable_profiling, options.profile_file_prefix = True, str(trace)
        try:
            model: str | bytes = str(path)
            if self._rewrites:
                model = self._rewritten(path, graph) or model
            if isinstance(model, bytes):
                folder = str(path.parent)
                options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
            # 0: else Python's part of ONNX Runtime would catch the provider's error, and take the CPU
            session = self._runtime.InferenceSession(model, options, providers=self._settings, enable_fallback=0)
        except MissingDependencyError:
            raise
        except Exception as error:
            raise EngineError(f"{self.name} cannot load {path}: {error}") from error
        if self.provider not in session.get_providers():
            raise EngineError(f"onnxruntime took the CPU instead of {self.provider} for {path}; its log says why")
        return session

    def _rewritten(self, path: Path, graph: Graph) -> bytes | None:
        """Return the graph as the provider wants it; None = as it was exported."""
        if self._provider == "cpu":
            return rewritten(path, graph, CPU_PASSES, "cpu")
        return rewritten(path, graph, CUDA_PASSES, "gpu")

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
        if isinstance(self.device, CudaDevice):
            # weights apart from the arena: they are copied in on another stream than the one that orders its use, and
            # leave with their session, which the arena's memory never does
            options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        # else each session wants its activations in one piece, beside the pieces that its first run left in the arena
        options.enable_mem_pattern = False
        return options

    def close(self) -> None:
        """Do nothing: sessions are freed with the engines that hold them, and the arena with the process."""
